"""Whether a random model gives plain onnxruntime's bits, whatever way a request comes in."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import onnx
import pytest

from deepsched import Context, Engine, Topology
from deepsched.errors import DeepschedError, InputError, ModelError, OptionError
from deepsched.models.batching.operators import operators_that_see_the_batch
from deepsched.models.rewrites.agreement import compare
from deepsched.models.rewrites.made_up import nudged
from tests.support import models
from tests.support.graphs import growing
from tests.support.graphs.draft import random_array
from tests.support.graphs.settings import SCHEDULERS, Setting, given
from tests.support.plain_onnxruntime import plain, same_bits
from tests.support.requests import run_until_busy

_NUM_WAITING = 5

OPEN = {"batch": 3, "length": 4, None: 3}
"""Sizes of what an engine leaves open."""

Contexts = dict[str, tuple[Context, Engine]]


class Unfit(Exception):
    """Nothing to compare with."""


class Plain:
    """The model on plain onnxruntime, on each number of threads that a request may have."""

    def __init__(self, proto: onnx.ModelProto, setting: Setting, names: list[str]) -> None:
        self.sessions = [plain(proto, width) for width in setting.widths]
        self.names = names

    def run(self, inputs: list[Any]) -> list[list[Any]]:
        """Outputs on each number of threads. Raises onnxruntime's errors."""
        feeds = dict(zip(self.names, inputs, strict=True))
        return [session.run(None, feeds) for session in self.sessions]


def runs(reference: Plain, inputs: list[Any]) -> bool:
    try:
        reference.run(inputs)
    except Exception:  # onnxruntime's errors have no common base but this
        return False
    return True


def opens(model: Any) -> bool:
    """Whether plain onnxruntime opens it: subgraphs of IR version 3 may fail there alone."""
    try:
        plain(model)
    except Exception:
        return False
    return True


def has_same_bits(one: Any, other: Any) -> bool:
    try:
        same_bits(one, other)
    except AssertionError:
        return False
    return True


def check(ours: list[Any], reference: Plain, inputs: list[Any], may_move: bool) -> None:
    """Asserts that they are plain onnxruntime's bits, or near them where they may move."""
    expected = reference.run(inputs)
    if any(has_same_bits(ours, it) for it in expected):
        return
    if may_move:
        if compare(expected[0], ours).is_allowed:
            return
        rng = np.random.default_rng(0)
        (aside, *_) = reference.run([nudged(rng, it) for it in inputs])
        assert compare(expected[0], ours, aside).is_allowed
        return
    same_bits(ours, expected[0])


def with_sizes(proto: onnx.ModelProto, engine: Engine) -> onnx.ModelProto:
    """The model with the sizes that `batch_size` has replaced: those that its file fixes."""
    resized = onnx.ModelProto()
    resized.CopyFrom(proto)
    shapes = dict(zip(engine.input_names, engine.input_shapes, strict=True))
    has_changed = False
    for value in resized.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if dim.HasField("dim_value") and dim.dim_value != size:
                dim.dim_value, has_changed = size, True
    if has_changed:
        del resized.graph.value_info[:]
        for value in resized.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return resized


def feeds(engine: Engine, seed: int) -> list[np.ndarray]:
    """Inputs of sizes that the engine takes."""
    rng = np.random.default_rng(seed)
    sizes = zip(engine.input_dtypes, engine.input_shapes, strict=True)
    return [
        random_array(rng, dtype, [it if isinstance(it, int) else OPEN[it] for it in shape])
        for dtype, shape in sizes
    ]


def ways_in(engine: Engine, inputs: list[Any]) -> dict[str, list[Any]]:
    """Outputs of the same inputs, by each way in."""

    async def together() -> list[list[Any]]:
        return await asyncio.gather(*(engine.run_async(inputs) for _ in range(2)))

    by_name = dict(zip(engine.input_names, inputs, strict=True))
    one, other = asyncio.run(together())
    mapped = engine.mapped_run(inputs)
    assert list(mapped) == engine.output_names
    return {
        "run": engine.run(inputs),
        "run by name, unchecked": engine.run(by_name, val_inp=False),
        "mapped_run": list(mapped.values()),
        "submit": engine.submit(inputs, priority=1).result(),
        "run_async": one,
        "run_async, too": other,
        **{f"map {i}": outputs for i, outputs in enumerate(engine.map([inputs] * 2))},
    }


def opened(source: Any, setting: Setting, context: Any, cache_dir: Any) -> Engine:
    options = {**setting.options, "context": context, "cache_dir": cache_dir}
    try:
        return Engine(source, setting.batch_size, **options)
    except OptionError:
        assert isinstance(setting.batching, int)  # the model has no batch, or not such a one
        return Engine(source, setting.batch_size, **{**options, "batching": "off"})


def try_engine(
    model: growing.RandomModel, setting: Setting, engine: Engine, blocker: Engine
) -> None:
    reference = Plain(with_sizes(model.proto, engine), setting, engine.input_names)
    session = reference.sessions[0]
    assert engine.input_names == [it.name for it in session.get_inputs()]
    assert engine.output_names == [it.name for it in session.get_outputs()]
    moves = setting.rewrites == "fast" and any(it.is_kept for it in engine.compiled.rewrites)
    inputs = feeds(engine, 0)
    if not runs(reference, inputs):
        with pytest.raises(DeepschedError):
            engine.run(inputs)
        return
    are_joined = bool(engine.compiled.batching.sizes)
    may_move = moves or (are_joined and not setting.keeps_bits_of_batches)
    for outputs in ways_in(engine, inputs).values():
        check(outputs, reference, inputs, may_move)
    # Such operators are only joined where the user takes whatever comes.
    if not (are_joined and operators_that_see_the_batch(model.proto)):
        try_waiting(engine, blocker, reference, may_move)
    if model.has_batch:
        try_split_batch(engine, reference, may_move)


def try_waiting(engine: Engine, blocker: Engine, reference: Plain, may_move: bool) -> None:
    """Different requests, which wait for a stream and may run together."""
    long = run_until_busy(blocker)
    requests = [feeds(engine, seed) for seed in range(1, _NUM_WAITING)]
    futures = [engine.submit(inputs) for inputs in requests]
    long.cancel()
    for inputs, future in zip(requests, futures, strict=True):
        if not runs(reference, inputs):
            with pytest.raises(DeepschedError):
                future.result()
            continue
        check(future.result(), reference, inputs, may_move)


def try_split_batch(engine: Engine, reference: Plain, may_move: bool) -> None:
    """batched_run gives what the parts give, one after another."""
    parts = [feeds(engine, seed) for seed in (1, 2)]
    whole = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
    if engine.batch_size is None and engine.num_streams == 1:
        parts = [whole]
    try:
        outputs = engine.batched_run(whole)
    except InputError as error:
        assert "join" in str(error)
        return
    except DeepschedError:
        assert any(not runs(reference, part) for part in parts)
        return
    if len(parts) == 1:
        check(outputs, reference, whole, may_move)
        return
    alone = [reference.run(part)[0] for part in parts]
    joined = [np.concatenate(it) for it in zip(*alone, strict=True)]
    assert has_same_bits(outputs, joined) or may_move or len(reference.sessions) > 1


@contextmanager
def open_contexts() -> Iterator[Contexts]:
    """A context and an engine that keeps it busy, by the names of SCHEDULERS."""
    with ExitStack() as stack:
        found = {}
        for name, (scheduler, num_cores) in SCHEDULERS.items():
            context = Context(
                topology=Topology.synthetic(packages=1, cores_per_l3=num_cores),
                num_streams=1 if scheduler == "single_stream" else num_cores,
                scheduler=scheduler,
                pin="none",
            )
            stack.enter_context(context)
            found[name] = context, Engine(models.spin(), None, context=context)
        yield found


def try_model(model: growing.RandomModel, setting: Setting, contexts: Contexts) -> None:
    """Opens it, from the cache too, and calls it in every way.

    Raises:
        AssertionError: an answer is not plain onnxruntime's.
        Unfit: plain onnxruntime does not open it.
    """
    if not opens(model.proto):
        raise Unfit
    context, blocker = contexts[setting.where]
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        given(model.proto, setting.given_as) as source,
    ):
        is_settled = True
        for is_warm in (False, True) if setting.is_kept else (False,):
            folder = cache_dir if setting.is_kept else None
            try:
                engine = opened(source, setting, context, folder)
            except ModelError:
                assert setting.batch_size not in ("auto", None)
                return
            with engine:
                is_found = is_warm and not engine.compiled.why_not
                # What others disturbed is tried, and compiled, again.
                assert engine.compiled.was_cached == is_found or not is_settled
                is_settled = engine.compiled.batching.is_settled
                try_engine(model, setting, engine, blocker)
