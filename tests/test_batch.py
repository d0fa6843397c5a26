"""What batch_size means: given, and left out, when nothing may break that works in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deepsched import Engine, compile_model
from deepsched.errors import ModelError, ShapeOverrideError
from deepsched.models.batch import batch_inputs
from tests.support import models
from tests.support.plain_onnxruntime import assert_equals_plain


def sums(**shapes):
    """Any number of inputs, each doubled."""
    return models.make(
        [helper.make_node("Add", [name, name], [f"{name}2"]) for name in shapes],
        [models.tensor(name, shape) for name, shape in shapes.items()],
        [models.tensor(f"{name}2", None) for name in shapes],
    )


def recurrent(batch, steps="steps"):
    """An LSTM as speech models have it: the state (2 layers, batch, 4) goes in and comes out."""
    rng = np.random.default_rng(0)
    sizes = {"w": (1, 16, 3), "r": (1, 16, 4)}
    nodes = [helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2])]
    nodes.append(helper.make_node("Split", ["state"], ["h", "c"], axis=0, num_outputs=2))
    nodes.append(
        helper.make_node(
            "LSTM", ["xt", "w", "r", "", "", "h", "c"], ["", "hn", "cn"], hidden_size=4
        )
    )
    nodes.append(helper.make_node("Concat", ["hn", "cn"], ["next"], axis=0))
    return models.make(
        nodes,
        [models.tensor("x", [batch, steps, 3]), models.tensor("state", [2, batch, 4])],
        [models.tensor("next", [2, batch, 4])],
        [
            helper.make_tensor(name, TensorProto.FLOAT, size, rng.standard_normal(size).ravel())
            for name, size in sizes.items()
        ],
        opset=18,
    )


@pytest.mark.parametrize("batch", ["batch", None, "unk__3", 1])
@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"cache_dir": None}])
def test_a_state_keeps_its_first_size(batch, options):
    with compile_model(recurrent(batch), num_cores=1, **options) as engine:
        assert engine.batch_size == 1
        x, state = engine.input_shapes
        assert (x[0], x[2], state[0], state[2]) == (1, 3, 2, 4)
        inputs = [np.ones((1, 7, 3), np.float32), np.ones((2, 1, 4), np.float32)]
        assert engine.run(inputs)[0].shape == (2, 1, 4)
        assert_equals_plain(engine, recurrent(batch))


def test_a_batch_that_is_given_goes_where_its_symbol_is():
    with Engine(recurrent("b"), 3) as engine:
        assert engine.input_shapes == [(3, "steps", 3), (2, 3, 4)]


@pytest.mark.parametrize("sizes", [(8, 8), (1, 1), (8, 1), (3, 3)])
def test_fixed_sizes_stay_unless_a_batch_is_given(sizes):
    x, y = sizes
    model = sums(x=[x, 3], y=[y, 2])
    with Engine(model) as engine:
        assert engine.input_shapes == [(x, 3), (y, 2)]
        assert engine.batch_size == min(sizes)
        assert_equals_plain(engine, model)
    with Engine(model, 5) as engine:
        assert engine.input_shapes == [(5 if x == min(sizes) else x, 3), (5, 2)]


# By name: the inputs' shapes, those of an engine that nobody gave a batch, and of one with 4.
OPEN = {
    "one batch": ({"x": ["batch-size", 3]}, {"x": (1, 3)}, {"x": (4, 3)}),
    "no symbol": ({"x": [None, 3]}, {"x": (1, 3)}, {"x": (4, 3)}),
    "Paddle's symbol": (
        {"x": ["?", 3, "?", "?"]},
        {"x": (1, 3, "?", "?")},
        {"x": (4, 3, "?", "?")},
    ),
    "Paddle's number": ({"x": [-1, 3, None]}, {"x": (1, 3, None)}, {"x": (4, 3, None)}),
    "text": (
        {"ids": ["batch_size", "sequence_length"], "mask": ["batch_size", "sequence_length"]}
        | {"positions": ["sequence_length"]},
        {"ids": (1, "sequence_length"), "positions": ("sequence_length",)},
        {"ids": (4, "sequence_length"), "positions": ("sequence_length",)},
    ),
    "a length first": (
        {"x": ["sequence_length", 576], "h": [1, 1, 8]},
        {"x": ("sequence_length", 576), "h": (1, 1, 8)},
        {"x": (4, 576), "h": (1, 1, 8)},
    ),
    "time first": (
        {"x": ["T", "N", 80], "lengths": ["N"]},
        {"x": ("T", 1, 80), "lengths": (1,)},
        {"x": ("T", 4, 80), "lengths": (4,)},
    ),
    "a square": ({"x": ["d", "d"]}, {"x": ("d", "d")}, {"x": (4, 4)}),
    "a graph and its edges": (
        {"x": ["N", 16], "adjacency": ["N", "N"]},
        {"x": ("N", 16), "adjacency": ("N", "N")},
        {"x": (4, 16), "adjacency": (4, 4)},
    ),
    "a list": (
        {"x": ["d0", 3], "index": ["d1"]},
        {"x": (1, 3), "index": ("d1",)},
        {"x": (4, 3), "index": ("d1",)},
    ),
    "most share it": (
        {"a": ["d0", 3], "b": ["d0", 3], "c": ["d1", 5]},
        {"a": (1, 3), "b": (1, 3), "c": ("d1", 5)},
        {"a": (4, 3), "b": (4, 3), "c": ("d1", 5)},
    ),
    "a product": (
        {"x": ["batch * heads", 3], "y": ["batch", 3]},
        {"x": ("batch * heads", 3), "y": (1, 3)},
        {"x": ("batch * heads", 3), "y": (4, 3)},
    ),
    "no dimension": ({"x": ["n", 3], "rate": []}, {"rate": ()}, {"x": (4, 3)}),
}


@pytest.mark.parametrize("case", OPEN)
def test_the_batch_is_told_from_other_open_sizes(case):
    stated, default, of_four = OPEN[case]
    model = sums(**stated)
    for batch_size, expected in (("auto", default), (4, of_four)):
        with Engine(model, batch_size, cache_dir=None) as engine:
            found = dict(zip(engine.input_names, engine.input_shapes, strict=True))
            assert found == {**found, **expected}
            assert_equals_plain(engine, model)


def test_a_model_that_takes_no_batch_of_one_is_left_open(tmp_path):
    """Its rows are split in two and two."""
    half = helper.make_node("Split", ["x", "two"], ["y", "z"], axis=0)
    two = helper.make_tensor("two", TensorProto.INT64, [2], [2, 2])
    model = models.make(
        [half], [models.tensor("x", ["batch", 3])], [models.tensor("y", None)], [two]
    )
    x = np.ones((4, 3), np.float32)
    for _ in range(2):
        with compile_model(model, cache_dir=tmp_path / "cache") as engine:
            assert engine.batch_size is None
            assert engine.input_shapes == [("batch", 3)]
            assert engine.run([x])[0].shape == (2, 3)
    assert engine.compiled.was_cached
    with pytest.raises(ModelError, match="Split"):
        Engine(model, 1)


def test_sizes_of_input_shapes_hold_for_their_symbols_elsewhere():
    with Engine(sums(a=["p", 3], b=["q", 3], c=["q", 2]), None) as engine:
        assert engine.batch_size is None
    shapes = [[4, 3], [5, 3], None]
    with Engine(sums(a=["p", 3], b=["q", 3], c=["q", 2]), input_shapes=shapes) as engine:
        assert engine.input_shapes == [(4, 3), (5, 3), (5, 2)]


def test_a_shape_for_what_is_no_tensor_is_refused():
    with pytest.raises(ShapeOverrideError, match="'x' is no tensor"):
        Engine(models.sequence_insert(), input_shapes=[[1, 2], None])


sizes = st.one_of(
    st.integers(1, 2), st.none(), st.sampled_from(["batch", "sequence", "d0", "d1", "?"])
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(sizes, max_size=3), min_size=1))
def test_no_default_changes_a_size_that_is_stated(shapes):
    model = sums(**shapes)
    with Engine(model, pin="none", num_cores=1, cache_dir=None) as engine:
        for name, found in zip(engine.input_names, engine.input_shapes, strict=True):
            for stated, size in zip(shapes[name], found, strict=True):
                assert size == stated or (not isinstance(stated, int) and size in (1, stated))
        assert_equals_plain(engine, model)
    assert set(batch_inputs(shapes)) <= set(shapes)
