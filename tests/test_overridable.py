"""Inputs with defaults (overridable initializers): given or left out, in every way to call."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from deepsched import Context, Engine, MultiModelEngine
from deepsched.errors import InputError, InputTypeError
from tests.support import models
from tests.support.plain_onnxruntime import plain, same_bits

NAMES = ("w", "b")
X = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
ROW = X[:1]
W = np.eye(256, dtype=np.float32)


def model():
    return models.gemm(also_inputs=NAMES)


def expected(**given):
    """onnxruntime's answer."""
    return plain(model()).run(None, given)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """From the cache, as the second start of a program finds it."""
    cache_dir = tmp_path_factory.mktemp("cache")
    Engine(model(), None, num_cores=1, cache_dir=cache_dir).close()
    with Engine(model(), None, num_cores=1, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached and engine.compiled.is_shared
        yield engine


@pytest.fixture(autouse=True)
def _no_context_is_left_open():
    """That of the module's engine is open between tests."""


GIVEN = {
    "none": ({"x": X}, {}),
    "one": ({"x": X, "w": W}, {"w": W}),
    "the other": ({"b": W[0], "x": X}, {"b": W[0]}),
    "both": ({"x": X, "w": W, "b": W[0]}, {"w": W, "b": W[0]}),
    "none, said": ({"x": X, "w": None}, {}),
    "in a list": ([X, W], {"w": W}),
    "in a list, the first left out": ([X, None, W[0]], {"b": W[0]}),
    "in a tuple": ((X, W, W[0]), {"w": W, "b": W[0]}),
    "none in a list": ([X], {}),
}


@pytest.mark.parametrize("case", GIVEN)
def test_an_input_with_a_default_may_be_given_or_left_out(case, engine):
    inputs, given = GIVEN[case]
    (y,) = expected(x=X, **given)
    same_bits(engine.run(inputs), [y])
    same_bits(engine.run(inputs, val_inp=False), [y])
    same_bits(engine.mapped_run(inputs)["y"], y)
    same_bits(engine.submit(inputs).result(10), [y])
    same_bits(asyncio.run(run_async(engine, inputs)), [y])
    for outputs in engine.map([inputs, inputs]):
        same_bits(outputs, [y])
    assert np.allclose(engine.batched_run(inputs)[0], y, rtol=1e-5)


async def run_async(engine, inputs):
    return await engine.run_async(inputs)


def test_they_are_listed_apart(engine):
    assert engine.input_names == ["x"]
    assert engine.overridable_names == list(NAMES)
    assert engine.overridable_shapes == [(256, 256), (256,)]
    assert engine.overridable_dtypes == [np.dtype("float32")] * 2
    assert len(engine.generate_random_inputs()) == 1
    overridable = plain(model()).get_overridable_initializers()
    assert [value.name for value in overridable] == engine.overridable_names


@pytest.mark.parametrize("options", [{}, {"cache_dir": None}, {"batch_size": 1}])
def test_the_default_holds_again_after_it_was_replaced(options):
    with (
        Context(num_cores=1, num_streams=1) as context,
        Engine(model(), context=context, **options) as engine,
    ):
        default = engine.run([ROW])
        zeros = engine.run({"x": ROW, "w": 0 * W, "b": W[0]})
        assert zeros[0].tolist() == [W[0].tolist()]
        same_bits(engine.run([ROW]), default)
        same_bits(default, expected(x=ROW))
        with MultiModelEngine(model(), 1, context) as other:
            same_bits(other.run({"x": ROW, "w": 0 * W, "b": W[0]}), zeros)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], InputError, r"1 input \('x'\), got 0; 'w', 'b', which have defaults, may follow$"),
        ([X, W, W[0], W], InputError, "got 4"),
        ({"w": W}, InputError, r"\['x'\], and any of \['w', 'b'\]; missing \['x'\]$"),
        ({"x": X, "v": W}, InputError, r"unknown \['v'\]$"),
        ({"x": X, "w": W[:2]}, InputError, "'w': .*got .2, 256.*leave it out"),
        ({"x": X, "w": W.astype(np.float64)}, InputTypeError, "'w': expected float32"),
        ([None, W], InputTypeError, "'x': expected an array"),
    ],
)
def test_what_does_not_fit_is_named(inputs, error, message, engine):
    with pytest.raises(error, match=message):
        engine.run(inputs)


def test_constants_of_ir_3_are_no_inputs():
    with Engine(models.gemm(ir_version=3, also_inputs=NAMES)) as engine:
        assert engine.overridable_names == []
        with pytest.raises(InputError, match="unknown"):
            engine.run({"x": ROW, "w": W})


def test_a_default_that_nothing_uses_stays_an_input(tmp_path):
    unused = models.identity(["n"])
    unused.graph.input.append(models.tensor("unused", [2]))
    unused.graph.initializer.append(models.gemm(size=2).graph.initializer[1])
    unused.graph.initializer[0].name = "unused"
    for _ in range(2):
        with Engine(unused, cache_dir=tmp_path / "cache") as engine:
            assert engine.run({"x": ROW[0, :1]})[0].shape == (1,)
