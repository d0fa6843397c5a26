"""Arrays, lists and dicts into ORT's values and back."""

from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from deepsched import Engine
from deepsched.errors import InputError, InputTypeError
from deepsched.runtime import element_types
from tests.support import models
from tests.support.plain_onnxruntime import plain, same_bits

ORDINARY = [
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
ML_DTYPES = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
]


def engine_for(dtype, shape=("n",)):
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return Engine(models.identity(shape, element_type, opset=21, ir_version=10), None)


@pytest.mark.parametrize("name", ORDINARY)
def test_every_ordinary_dtype_goes_in_and_out(name):
    x = np.array([0, 1, 1, 0, 1], dtype=name)
    with engine_for(name) as engine:
        (y,) = engine.run([x])
        assert engine.input_dtypes == engine.output_dtypes == [np.dtype(name)]
    assert y.dtype == x.dtype
    assert (y == x).all()


@pytest.mark.parametrize("name", ML_DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_ml_dtypes_go_in_and_out(name, size):
    dtype = np.dtype(getattr(ml_dtypes, name))
    x = np.arange(size).astype(np.float32).astype(dtype)
    with engine_for(dtype) as engine:
        (y,) = engine.run([x])
    assert y.dtype == dtype
    assert y.astype(np.float32).tolist() == x.astype(np.float32).tolist()


@pytest.mark.parametrize(("name", "low", "high"), [("int4", -8, 8), ("uint4", 0, 16)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_packed_integers_go_in_and_out(name, low, high, size):
    """Two elements a byte inside ORT; an odd number of them leaves half a byte."""
    packed = np.dtype(getattr(ml_dtypes, name))
    wide = np.linspace(low, high - 1, size).astype(np.int32)
    element_type = helper.np_dtype_to_tensor_dtype(packed)

    def cast(source, target):
        return models.make(
            [helper.make_node("Cast", ["x"], ["y"], to=target)],
            [models.tensor("x", ["n"], source)],
            [models.tensor("y", ["n"], target)],
            opset=21,
            ir_version=10,
        )

    with Engine(cast(TensorProto.INT32, element_type), None) as engine:
        (narrow,) = engine.run([wide])
        assert narrow.dtype == packed
        assert narrow.astype(np.int32).tolist() == wide.tolist()
    with Engine(cast(element_type, TensorProto.INT32), None) as engine:
        assert engine.run([narrow])[0].tolist() == wide.tolist()


@pytest.mark.parametrize(("name", "low", "high"), [("int4", -8, 8), ("uint4", 0, 16)])
def test_packed_integers_keep_their_sign(name, low, high):
    dtype = np.dtype(getattr(ml_dtypes, name))
    x = np.arange(low, high).astype(dtype)
    bits = element_types.BITS[21]
    y = element_types.unpack(element_types.pack(x, bits), bits, x.shape, dtype)
    assert y.astype(int).tolist() == list(range(low, high))


@given(
    x=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0), elements=st.just(1.5)
    ),
    order=st.sampled_from("CF"),
    reverse=st.booleans(),
)
def test_any_shape_and_layout_comes_back_equal(x, order, reverse):
    shape = tuple(f"d{i}" for i in range(x.ndim))
    x = np.asarray(x, order=order)
    if reverse and x.ndim:
        x = x[::-1]
    with Engine(models.identity(shape), None) as engine:
        (y,) = engine.run([x])
    assert y.shape == x.shape
    assert (y == x).all()


def test_scalars_of_every_form():
    with engine_for("float32", ()) as engine:
        for x in (np.float32(2.5), np.array(2.5, np.float32), 2.5):
            (y,) = engine.run([x])
            assert y.shape == ()
            assert y == np.float32(2.5)


def test_numbers_without_a_dtype_take_the_models():
    with engine_for("float32") as engine:
        assert engine.run([[1, 2.5]])[0].tolist() == [1.0, 2.5]
    with engine_for("int64") as engine:
        assert engine.run([[1, 2]])[0].tolist() == [1, 2]
        with pytest.raises(InputTypeError, match="'x': expected int64, got float64"):
            engine.run([[1.5]])


@pytest.mark.parametrize("name", [name for name in ORDINARY if np.dtype(name).kind in "iu"])
def test_whole_numbers_of_python_keep_their_value_or_are_refused(name):
    limits = np.iinfo(name)
    with engine_for(name) as engine:
        for numbers in ([limits.min, 0, limits.max], (1,), []):
            assert engine.run([numbers])[0].tolist() == list(numbers)
        for number in (limits.min - 1, limits.max + 1):
            with pytest.raises(InputTypeError, match=f"'x': expected {name}") as refused:
                engine.run([[0, number]])
            assert "astype" not in str(refused.value)
        with pytest.raises(InputTypeError, match="got float64"):
            engine.run([[1.0]])


def test_other_byte_orders_and_unaligned_data_are_made_right():
    x = np.array([1.5, -2.0], dtype=">f4")
    shifted = np.zeros(9, np.uint8)[1:].view("<f4")  # not aligned
    shifted[:] = [3.0, 4.0]
    with engine_for("float32") as engine:
        assert engine.run([x])[0].tolist() == [1.5, -2.0]
        assert engine.run([shifted])[0].tolist() == [3.0, 4.0]


def test_longlong_is_int64():
    with engine_for("int64") as engine:
        assert engine.run([np.array([7], np.longlong)])[0].tolist() == [7]


def test_readonly_inputs_and_subclasses_are_taken():
    x = np.array([1.0], np.float32)
    x.flags.writeable = False
    with engine_for("float32") as engine:
        assert engine.run([x])[0].tolist() == [1.0]
        assert engine.run([np.ma.masked_array([2.0], dtype=np.float32)])[0].tolist() == [2.0]


@pytest.mark.parametrize("make", [np.array, lambda s: np.array(s, object), list])
def test_strings_go_in_and_out(make):
    words = ["a", "", "größer", "\U0001f600", "x" * 1000]
    with engine_for(object) as engine:
        (y,) = engine.run([make(words)])
    assert y.dtype == object
    assert y.tolist() == words


@pytest.mark.parametrize("dtype", ["S8", "V8"])
def test_strings_may_be_bytes_that_are_padded(dtype):
    with engine_for(object) as engine:
        (y,) = engine.run([np.array([b"a", "größe".encode()], dtype)])
    assert y.tolist() == ["a", "größe"]


def test_strings_that_cannot_be_passed_are_named():
    with engine_for(object) as engine:
        for text in ("a\0b", "a\0", b"\0"):  # numpy's types of text drop those at the end
            for given in ([text], (text,), np.array([text], object)):
                with pytest.raises(InputTypeError, match="without NUL"):
                    engine.run([given])
        with pytest.raises(InputTypeError, match="expected string, got int64"):
            engine.run([np.array([1])])
        assert engine.run([np.zeros((0,), object)])[0].shape == (0,)


def test_sequences_are_lists():
    with Engine(models.sequence_insert(), None) as engine:
        one, two = np.ones(1, np.float32), np.full(2, 2, np.float32)
        (y,) = engine.run([[one], two])
        assert [part.tolist() for part in y] == [[1.0], [2.0, 2.0]]
        (y,) = engine.run([[], two])
        assert [part.tolist() for part in y] == [[2.0, 2.0]]
        with pytest.raises(InputTypeError, match="expected a list of float32"):
            engine.run([one, two])
        with pytest.raises(InputTypeError, match="expected float32, got float64"):
            engine.run([[np.ones(1)], two])


def test_parts_of_a_sequence_outlive_inputs_and_engine():
    with Engine(models.sequence_insert(), None) as engine:
        (y,) = engine.run([[np.full(1000, 7, np.float32)], np.ones(1, np.float32)])
    del engine
    gc.collect()
    np.zeros(1000, np.float32)
    assert (y[0] == 7).all()


def test_maps_are_dicts():
    labels = {"classlabels_strings": ["a", "b"]}
    nodes = [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", **labels)]
    value = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    output = helper.make_value_info("y", helper.make_sequence_type_proto(value))
    model = models.make(nodes, [models.tensor("x", ["n", 2])], [output])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    with Engine(model, None) as engine:
        (y,) = engine.run([np.array([[0.25, 0.75]], np.float32)])
    assert y == [{"a": 0.25, "b": 0.75}]


def test_an_absent_optional_is_none():
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    inputs = [helper.make_value_info("x", helper.make_optional_type_proto(floats))]
    model = models.make(
        [helper.make_node("OptionalHasElement", ["x"], ["y"])],
        inputs,
        [models.tensor("y", [], TensorProto.BOOL)],
        opset=18,
    )
    with Engine(model, None) as engine:
        assert engine.run([np.ones(1, np.float32)])[0] == np.True_
        assert engine.run([None])[0] == np.False_
        assert engine.run({})[0] == np.False_


def test_outputs_outlive_the_engine_and_can_be_written():
    with Engine(models.mlp(), None) as engine:
        x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
        (y,) = engine.run([x])
        expected = y.copy()
    del engine
    gc.collect()
    assert (y == expected).all()
    y += 1


def test_an_output_that_is_the_input_is_a_copy():
    model = models.make([], [models.tensor("x", ["n"])], [models.tensor("x", ["n"])])
    with Engine(model, None) as engine:
        x = np.ones(1000, np.float32)
        (y,) = engine.run([x])
        x[:] = 5
        assert (y == 1).all()


def test_a_constant_output_is_a_copy_of_the_weight():
    constant = helper.make_tensor("c", TensorProto.FLOAT, [3], [1, 2, 3])
    model = models.make(
        [helper.make_node("Identity", ["x"], ["y"])],
        [models.tensor("x", ["n"])],
        [models.tensor("y", ["n"]), models.tensor("c", [3])],
        [constant],
    )
    with Engine(model, None) as engine:
        x = np.ones(1, np.float32)
        engine.run([x])[1][:] = 9
        assert engine.run([x])[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones((2, 3), np.float64), InputTypeError, "'x': expected float32, got float64"),
        (np.ones((2, 3), np.int32), InputTypeError, "'x': expected float32, got int32"),
        (np.ones((2,), np.float32), InputError, r"'x': expected shape \[2, 3\], got \[2\]"),
        (np.ones((2, 4), np.float32), InputError, r"'x': expected shape \[2, 3\], got \[2, 4\]"),
        (np.ones((5, 3), np.float32), InputError, "recompile with batch_size=None"),
        (None, InputTypeError, "'x': expected an array, got None"),
        ({}, InputTypeError, "'x': expected an array, got {}"),
        ("text", InputTypeError, "'x': expected float32"),
        ([[1.0], [2.0, 3.0]], InputTypeError, "numpy cannot read"),
    ],
)
def test_an_input_that_does_not_fit_is_named(value, error, message):
    with Engine(models.identity([2, 3]), None) as engine:
        with pytest.raises(error, match=message):
            engine.run([value])
        assert engine.run([np.ones((2, 3), np.float32)])[0].shape == (2, 3)


# --- Maps ---------------------------------------------------------------------------------------


def vectorizer(key_type, value_type):
    """The values of the keys "a" and "b", or 1 and 2."""
    vocabulary = (
        {"string_vocabulary": ["a", "b"]}
        if key_type == TensorProto.STRING
        else {"int64_vocabulary": [1, 2]}
    )
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", **vocabulary)
    value = helper.make_tensor_type_proto(value_type, [])
    x = helper.make_value_info("x", helper.make_map_type_proto(key_type, value))
    model = models.make([node], [x], [models.tensor("y", None, value_type)])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


STRING, INT64 = TensorProto.STRING, TensorProto.INT64
NUMBERS = [1, 1.0, True, np.float32(1), np.float64(1), np.int64(1), np.uint8(1), np.array(1.0)]


@pytest.mark.parametrize(("key_type", "keys"), [(STRING, ["a", "b"]), (INT64, [1, np.int32(2)])])
@pytest.mark.parametrize("value_type", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_maps_take_numbers_of_any_type(key_type, keys, value_type):
    with Engine(vectorizer(key_type, value_type)) as engine:
        for one in NUMBERS:
            (y,) = engine.run([{keys[0]: one, keys[1]: 2.5}])
            assert y.tolist() == [[1.0, 2.5]]
            assert y.dtype == helper.tensor_dtype_to_np_dtype(value_type)


def test_maps_of_floats_are_onnxruntimes():
    for key_type, key in ((STRING, "a"), (INT64, 1)):
        model = vectorizer(key_type, TensorProto.FLOAT)
        session = plain(model)
        with Engine(model) as engine:
            for one in (*NUMBERS, 2**70, 1e300, float("nan")):
                if isinstance(one, np.ndarray) and key == 1:
                    continue  # onnxruntime takes these for string keys only
                same_bits(engine.run([{key: one}]), session.run(None, {"x": {key: one}}))


def test_maps_of_whole_numbers_and_of_strings():
    with Engine(vectorizer(STRING, INT64)) as engine:
        assert engine.run([{"a": 1, "b": np.int8(2)}])[0].tolist() == [[1, 2]]
    with Engine(vectorizer(INT64, STRING)) as engine:
        assert engine.run([{1: "one", 2: np.str_("two")}])[0].tolist() == [["one", "two"]]


@pytest.mark.parametrize(
    ("types", "value", "message"),
    [
        ((STRING, TensorProto.FLOAT), {1: 1.0}, r"string to float32, got the key 1 \(int\)"),
        ((STRING, TensorProto.FLOAT), {"a": 1.0, 2: 1.0}, r"got the key 2 \(int\)"),
        ((STRING, TensorProto.FLOAT), {"a": "1.0"}, r"got the value '1.0' \(str\)"),
        ((STRING, TensorProto.FLOAT), {"a": None}, r"got the value None \(NoneType\)"),
        ((STRING, TensorProto.FLOAT), {"a": [1.0]}, r"got the value \[1.0\] \(list\)"),
        ((STRING, TensorProto.FLOAT), {"a": 1j}, r"got the value 1j \(complex\)"),
        ((STRING, TensorProto.FLOAT), {"a": 10**400}, "got the value 1000"),
        ((INT64, TensorProto.FLOAT), {"a": 1.0}, "int64 to float32, got the key 'a'"),
        ((INT64, TensorProto.FLOAT), {1.0: 1.0}, "got the key 1.0"),
        ((INT64, TensorProto.FLOAT), {2**70: 1.0}, "got the key 118"),
        ((STRING, INT64), {"a": 1.0}, r"string to int64, got the value 1.0 \(float\)"),
        ((INT64, STRING), {1: 1}, "int64 to string, got the value 1"),
        ((STRING, TensorProto.FLOAT), {}, "at least one entry"),
        ((STRING, TensorProto.FLOAT), np.ones(2), "expected a dict"),
        ((STRING, TensorProto.FLOAT), [("a", 1.0)], "expected a dict"),
    ],
)
def test_maps_that_do_not_fit_are_refused(types, value, message):
    with Engine(vectorizer(*types)) as engine:
        with pytest.raises(InputTypeError, match=message) as refused:
            engine.run([value])
        assert "astype" not in str(refused.value)


def test_sequences_of_maps():
    content = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(STRING, content))
    model = models.identity((1,))
    model.graph.input.append(helper.make_value_info("maps", maps))
    x = np.ones(1, np.float32)
    with Engine(model) as engine:
        assert engine.run([x, [{"a": 1.0}, {"a": 1, "b": 2.5}]])[0].tolist() == [1.0]
        for wrong in ([], [{"a": "x"}], [{1: 1.0}], {"a": 1.0}, [1.0]):
            with pytest.raises(InputTypeError, match="'maps': expected a"):
                engine.run([x, wrong])
