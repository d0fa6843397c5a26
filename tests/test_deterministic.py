"""The same input gives the same bits, whatever the load."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepsched import Context, Engine, Topology, compile_model
from deepsched.errors import OptionError
from deepsched.models.repeatability import varying_operators
from deepsched.scheduling import determinism
from tests.support import models
from tests.support.plain_onnxruntime import reference, same_bits

RNG = np.random.default_rng(3)
HIDDEN = 64


def quantized_lstm():
    """x, sequences of 10 steps -> y; as onnxruntime writes a dynamically quantised LSTM."""
    weights = {
        "w": RNG.integers(0, 255, (1, HIDDEN, 4 * HIDDEN)).astype(np.uint8),
        "r": RNG.integers(0, 255, (1, HIDDEN, 4 * HIDDEN)).astype(np.uint8),
        "scale": np.full(1, 0.01, np.float32),
        "zero": np.full(1, 128, np.uint8),
    }
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["x", "w", "r", "", "", "", "", "", "scale", "zero", "scale", "zero"],
        ["y"],
        domain="com.microsoft",
        hidden_size=HIDDEN,
    )
    model = models.make(
        [node],
        [models.tensor("x", [10, "n", HIDDEN])],
        [models.tensor("y", None)],
        [numpy_helper.from_array(content, name) for name, content in weights.items()],
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def one_node(op_type, inputs, domain="", constants=(), **attributes):
    """A model of one node whose inputs are float32 matrices or constants."""
    model = models.make(
        [helper.make_node(op_type, inputs, ["y"], domain=domain, **attributes)],
        [models.tensor(name, ["a", "b"]) for name in inputs if name not in dict(constants)],
        [models.tensor("y", None)],
        [numpy_helper.from_array(content, name) for name, content in dict(constants).items()],
    )
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


SEQUENCES = [RNG.standard_normal((10, 8, HIDDEN)).astype(np.float32)]

LAYOUTS = {
    "elastic": (4, {"scheduler": "elastic"}),
    "elastic with unequal streams": (3, {"scheduler": "elastic", "num_streams": 2}),
    "unequal streams": (3, {"scheduler": "multi_stream", "num_streams": 2}),
}


def context_of(layout):
    num_cores, options = LAYOUTS[layout]
    topology = Topology.synthetic(packages=1, cores_per_l3=num_cores)
    return Context(topology=topology, pin="none", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_load_does_not_decide_on_the_bits(layout):
    model = quantized_lstm()
    expected = reference(model, SEQUENCES)
    # Else this would prove nothing.
    assert reference(model, SEQUENCES, 2)[0].tobytes() != expected[0].tobytes()
    with context_of(layout) as context:
        engine = Engine(model, None, context=context, deterministic=True)
        for _ in range(3):
            same_bits(engine.run(SEQUENCES), expected)
        for outputs in engine.map([SEQUENCES] * 20):
            same_bits(outputs, expected)
        if layout.startswith("elastic"):
            assert set(engine.stats().by_width) == {1}


def test_a_single_stream_uses_all_of_its_cores():
    model = quantized_lstm()
    topology = Topology.synthetic(packages=1, cores_per_l3=3)
    with Context(topology=topology, scheduler="single_stream", pin="none") as context:
        engine = Engine(model, None, context=context, deterministic=True)
        same_bits(engine.run(SEQUENCES), reference(model, SEQUENCES, 3))


def test_what_varies_from_run_to_run_runs_on_one_core():
    size = 1000
    model = models.make(
        [helper.make_node("ScatterND", ["zeros", "index", "x"], ["y"], reduction="add")],
        [models.tensor("index", ["n", 1], TensorProto.INT64), models.tensor("x", ["n", 64])],
        [models.tensor("y", [size, 64])],
        [numpy_helper.from_array(np.zeros((size, 64), np.float32), "zeros")],
        opset=18,
    )
    inputs = [
        RNG.integers(0, size, (20 * size, 1)),
        RNG.standard_normal((20 * size, 64)).astype(np.float32),
    ]
    topology = Topology.synthetic(packages=1, cores_per_l3=4)
    with Context(topology=topology, scheduler="single_stream", pin="none") as context:
        engine = Engine(model, None, context=context, deterministic=True)
        for _ in range(10):
            same_bits(engine.run(inputs), reference(model, inputs))


def test_random_numbers_are_refused():
    model = one_node("RandomNormalLike", ["x"])
    with pytest.raises(OptionError, match="random numbers.*RandomNormalLike"):
        Engine(model, None, deterministic=True)
    with Engine(model, None) as engine:  # without, they are fine
        engine.run([np.ones((2, 2), np.float32)])


@pytest.fixture
def warnings_once(caplog):
    determinism._warn.cache_clear()
    yield lambda: [it for it in caplog.messages if "last bits" in it]
    determinism._warn.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_whose_bits_depend_on_the_load_is_warned_of_once(layout, warnings_once):
    for _ in range(2):
        with context_of(layout) as context:
            Engine(quantized_lstm(), None, context=context)
    (warning,) = warnings_once()
    assert "DynamicQuantizeLSTM" in warning and "deterministic=True" in warning


def test_nobody_is_warned_where_nothing_varies(warnings_once, tmp_path):
    path = models.save(quantized_lstm(), tmp_path)
    for scheduler in ("single_stream", "elastic"):
        for _ in range(2):  # the second from the cache
            with compile_model(path, None, scheduler=scheduler, deterministic=True):
                pass
            with compile_model(models.mlp(), None, scheduler=scheduler):
                pass
    with compile_model(path, None, scheduler="single_stream"):
        pass
    assert warnings_once() == []


def test_a_model_from_the_cache_is_warned_of_too(warnings_once, tmp_path):
    path = models.save(quantized_lstm(), tmp_path)
    for was_cached in (False, True):
        determinism._warn.cache_clear()
        with context_of("unequal streams") as context:
            assert Engine(path, None, context=context).compiled.was_cached == was_cached
    assert len(warnings_once()) == 2


MATRIX = np.ones((16, 16), np.float32)


@pytest.mark.parametrize(
    ("model", "by_width"),
    [
        (one_node("MatMul", ["x", "z"]), ("MatMul",)),
        (one_node("MatMul", ["x", "w"], constants={"w": MATRIX}), ()),
        (one_node("MatMul", ["x", "w"], constants={"w": MATRIX.astype(float)}), ("MatMul",)),
        (one_node("Softplus", ["x"]), ("Softplus",)),
        (one_node("Exp", ["x"]), ()),
        (one_node("ScatterND", ["x", "z", "u"]), ()),
        (one_node("TreeEnsembleRegressor", ["x"], "ai.onnx.ml"), ("TreeEnsembleRegressor",)),
        (models.spin(), ()),  # its product with a constant is in a loop's body
    ],
)
def test_operators_are_told_by_what_they_work_on(model, by_width):
    assert varying_operators(model).by_width == by_width


def test_operators_in_branches_are_found():
    branch = helper.make_graph(
        [helper.make_node("Elu", ["x"], ["z"])], "branch", [], [models.tensor("z", None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = onnx.helper.make_model(helper.make_graph([node], "g", [], []))
    assert varying_operators(model).by_width == ("Elu",)


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_deterministic_is_true_or_false(wrong):
    with pytest.raises(OptionError, match="deterministic must be True or False"):
        compile_model(models.identity(), deterministic=wrong)
