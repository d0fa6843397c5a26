"""Inputs of every kind to engine.run: numbers of all types, byte orders, strides and shapes, also
read-only, unaligned, subclasses and scalars; strings, sequences, maps, optionals. A model y = x
gives back what it was given, or the call raises an InputError, and the engine goes on.

The bytes are the choices of a hypothesis strategy.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import InferenceError, InputError
from fuzz.target import Target
from tests.support import models

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "uint16": TensorProto.UINT16,
    "bool": TensorProto.BOOL,
    "object": TensorProto.STRING,
}

_NUMBERS = [name for name in _TYPES if name != "object"]


@functools.cache
def _engines() -> dict[str, Engine]:
    context = Context(num_cores=1, num_streams=1, pin="none", cores="share")

    def opened(model: Any) -> Engine:
        return Engine(model, None, context=context, cache_dir=None, batching="off")

    made = {name: opened(models.identity(["n", None], number)) for name, number in _TYPES.items()}
    made["fixed"] = opened(models.identity([2, 3]))
    made["scalar"] = opened(models.identity([]))
    made["sequence"] = opened(models.sequence_insert())
    made["two"] = opened(models.add_two_inputs())
    made["optional"] = opened(_optional())
    made["map"] = opened(_map())
    return made


def _optional() -> Any:
    given = helper.make_tensor_type_proto(TensorProto.FLOAT, [None])
    value = helper.make_value_info("x", helper.make_optional_type_proto(given))
    node = helper.make_node("OptionalHasElement", ["x"], ["y"])
    return models.make([node], [value], [models.tensor("y", [], TensorProto.BOOL)], opset=18)


def _map() -> Any:
    value = helper.make_value_info(
        "x", helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    )
    node = helper.make_node("CastMap", ["x"], ["y"], domain="ai.onnx.ml", cast_to="TO_FLOAT")
    model = models.make([node], [value], [models.tensor("y", [1, None])])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=4)
    | st.binary(max_size=4)
)

_dtypes = (
    hnp.scalar_dtypes()
    | hnp.byte_string_dtypes(max_len=4)
    | hnp.unicode_string_dtypes(max_len=4)
    | hnp.nested_dtypes(max_itemsize=16)
)


@st.composite
def _arrays(draw: st.DrawFn, dtypes: Any, dims: tuple[int, int] = (0, 4), text: Any = None) -> Any:
    """An array, or a view of one in one of the ways that numpy has."""
    shapes = hnp.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=0, max_side=4)
    array = draw(hnp.arrays(draw(dtypes), shapes, elements=text))
    how = draw(st.integers(0, 9))
    if how == 1:
        array = array.T
    elif how == 2 and array.ndim:
        array = array[::-1]
    elif how == 3 and array.dtype.kind in "iufc":
        array = array.astype(array.dtype.newbyteorder())
    elif how == 4:
        array.flags.writeable = False
    elif how == 5:
        array = _unaligned(array)
    elif how == 6 and array.ndim:
        array = np.broadcast_to(array[:1], array.shape) if len(array) else array
    elif how == 7 and array.dtype.kind in "iuf":
        array = np.ma.masked_array(array)
    elif how == 8 and array.ndim == 0:
        array = array[()]
    elif how == 9:
        array = array.tolist()
    return array


def _unaligned(array: Any) -> Any:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    if array.dtype.hasobject or not array.nbytes:
        return array
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


_objects = hnp.arrays(
    object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), elements=_scalars
)

_any_arrays = _arrays(st.sampled_from(_NUMBERS).map(np.dtype) | _dtypes)

_values = st.recursive(
    _scalars | _any_arrays | _objects,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_scalars, inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=5,
)

_names = st.sampled_from(["x", "a", "b", "index", "y", ""])


def _fitting(name: str) -> Any:
    if name != "object":
        return _arrays(st.just(np.dtype(name)), (2, 2))
    strings = st.text(max_size=4) | st.binary(max_size=4)
    return _arrays(st.just(np.dtype(object)), (2, 2), strings)


@settings(database=None, deadline=None)
@given(
    choice=st.sampled_from(list(_TYPES)).flatmap(lambda it: st.tuples(st.just(it), _fitting(it)))
)
def _identity(choice: tuple[str, Any]) -> None:
    name, value = choice
    try:
        (found,) = _engines()[name].run([value])
    except (InputError, InferenceError) as error:
        assert str(error)
        return
    _check_same(np.asarray(value, None if isinstance(value, np.ndarray) else name), found)


def _check_same(given: Any, found: Any) -> None:
    assert found.shape == given.shape, (given, found)
    if found.dtype == object:
        wanted = [
            it.decode("utf-8", "surrogateescape") if isinstance(it, bytes) else it
            for it in given.astype(object).flat
        ]
        assert list(found.flat) == wanted, (given, found)
    else:
        assert given.dtype.newbyteorder("=") == found.dtype, (given.dtype, found.dtype)
        assert found.tobytes() == given.astype(found.dtype).tobytes(), (given, found)


@settings(database=None, deadline=None)
@given(
    name=st.sampled_from([*_TYPES, "fixed", "scalar", "sequence", "two", "optional", "map"]),
    inputs=_values | st.lists(_values, max_size=3) | st.dictionaries(_names, _values, max_size=3),
)
def _anything(name: str, inputs: Any) -> None:
    _run(name, inputs)


_lists = _arrays(st.just(np.dtype("float32")), (1, 1))
_rows = hnp.arrays(np.float32, (2, 3))
_index = hnp.arrays(np.int64, (3,), elements=st.integers(-3, 2))
_numbers = st.integers(-(2**64), 2**64) | st.floats()

_composed_inputs = st.one_of(
    st.tuples(st.just("sequence"), st.tuples(st.lists(_lists, max_size=3), _lists)),
    st.tuples(st.just("map"), st.tuples(st.dictionaries(_numbers, _numbers, max_size=4))),
    st.tuples(st.just("optional"), st.tuples(st.none() | _lists)),
    st.tuples(st.just("two"), st.tuples(_rows, _rows, _index)),
    st.tuples(
        st.just("two"), st.fixed_dictionaries({"a": _rows, "b": _rows}, optional={"index": _index})
    ),
)


@settings(database=None, deadline=None)
@given(choice=_composed_inputs)
def _composed(choice: tuple[str, Any]) -> None:
    name, inputs = choice
    _run(name, inputs if isinstance(inputs, dict) else list(inputs))


def _run(name: str, inputs: Any) -> None:
    try:
        outputs = _engines()[name].run(inputs)
    except (InputError, InferenceError) as error:
        assert str(error)
    else:
        assert outputs


_TESTS = (_identity, _composed, _anything)


def check(data: bytes) -> None:
    test = _TESTS[(data[0] if data else 0) % len(_TESTS)]
    test.hypothesis.fuzz_one_input(data[1:])  # type: ignore[attr-defined]


def _seeds() -> Iterator[bytes]:
    source = random.Random(0)
    for length in (8, 64, 64, 256, 256, 1024):
        for number in range(len(_TESTS)):
            yield bytes([number]) + source.randbytes(length)


TARGET = Target(check, _seeds)
