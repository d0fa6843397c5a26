"""Memory that a large input took goes back to the system."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import onnx
import pytest
from onnx import helper

from deepsched import Engine, compile_model
from deepsched.errors import ClosedError, OptionError
from tests.support import models
from tests.support.contexts import two_sessions, unpinned
from tests.support.plain_onnxruntime import same_bits
from tests.support.processes import run_python

LARGE = [np.ones((1, 3, 512, 512), np.float32)]
SMALL = [np.ones((1, 3, 64, 64), np.float32)]
MB = 1_000_000


def picture_model():
    """x, a picture of any size -> y, its mean; 64 times the picture's memory in between."""
    rng = np.random.default_rng(1)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 10, name)
        for name, shape in (("first", (32, 3, 3, 3)), ("second", (32, 32, 3, 3)))
    ]
    return models.make(
        [
            helper.make_node("Conv", ["x", "first"], ["parts"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["parts", "second"], ["wholes"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["wholes"], ["y"]),
        ],
        [models.tensor("x", ["n", 3, "height", "width"])],
        [models.tensor("y", ["n", 32, 1, 1])],
        weights,
    )


def kept(engine):
    """Bytes that its sessions keep for the next run."""
    return sum(engine.memory().activations)


async def awaited(engine, inputs, **options):
    return await engine.run_async(inputs, **options)


WAYS = {
    "run": lambda engine, inputs, **options: engine.run(inputs, **options),
    "call": lambda engine, inputs, **options: engine(inputs, **options),
    "mapped_run": lambda engine, inputs, **options: engine.mapped_run(inputs, **options),
    "submit": lambda engine, inputs, **options: engine.submit(inputs, **options).result(),
    "run_async": lambda engine, inputs, **options: asyncio.run(awaited(engine, inputs, **options)),
    "map": lambda engine, inputs, **options: list(engine.map([inputs], **options)),
    "batched_run": lambda engine, inputs, **options: engine.batched_run(inputs, **options),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_request_gives_back_what_its_run_took(way):
    with Engine(picture_model(), None) as engine:
        WAYS[way](engine, LARGE)
        assert kept(engine) > 60 * MB
        engine.trim()
        assert kept(engine) < 2 * MB
        WAYS[way](engine, LARGE, shrink_memory=True)
        assert kept(engine) < 2 * MB


@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream", "elastic"])
def test_an_engine_gives_back_what_each_run_took(scheduler):
    with unpinned(2, scheduler) as context:
        engine = Engine(picture_model(), None, context=context, shrink_memory=True)
        for _ in range(3):
            engine.run(LARGE)
        assert kept(engine) < 4 * MB
        engine.run(LARGE, shrink_memory=False)
        assert kept(engine) > 60 * MB


def test_the_process_is_as_small_as_before():
    out = run_python("""
        import re
        import numpy as np
        from deepsched import compile_model
        from tests.test_giving_memory_back import LARGE, SMALL, picture_model

        def resident():
            return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

        for first in (LARGE, SMALL):
            with compile_model(picture_model(), None, num_cores=1) as engine:
                engine.run(SMALL, shrink_memory=True) if first is SMALL else None
                before = resident()
                engine.run(LARGE)
                large = resident()
                engine.trim()
                print(large - before, resident() - before)
    """)
    for line in out.splitlines():
        grown, left = map(int, line.split())
        assert grown > 60 * MB
        assert left < 15 * MB  # kernels' own tables, and stacks


def test_a_small_output_that_is_held_keeps_nothing_else():
    """It may be in the middle of the memory that the run took."""
    with Engine(picture_model(), None) as engine:
        engine.run(SMALL)
        expected = engine.run(LARGE)[0].copy()
        engine.trim()
        held = []
        for _ in range(3):
            held += engine.run(LARGE, shrink_memory=True)
            assert kept(engine) < 2 * MB
        assert all(output.tobytes() == expected.tobytes() for output in held)


def test_outputs_of_every_kind_survive_being_copied_out():
    for make in (models.sequence_insert, models.identity):
        with Engine(make(), None) as engine:
            inputs = engine.generate_random_inputs()
            plainly = engine.run(inputs)
            same_bits(engine.run(inputs, shrink_memory=True), plainly)
    texts = np.array(["a", "", "\u00e4" * 1000], object)
    for array in (texts, np.zeros((0, 3), np.float32), np.array(7.0, np.float32)):
        dtype = onnx.TensorProto.STRING if array.dtype == object else onnx.TensorProto.FLOAT
        with Engine(models.identity(array.shape, dtype), None) as engine:
            (output,) = engine.run([array], shrink_memory=True)
            assert output.shape == array.shape and output.tolist() == array.tolist()


def test_outputs_that_are_held_are_not_given_back():
    with Engine(models.identity(("n",)), None) as engine:
        numbers = np.arange(5_000_000, dtype=np.float32)
        (held,) = engine.run([numbers], shrink_memory=True)
        engine.trim()
        engine.run([numbers * 2])
        assert np.array_equal(held, numbers)


def test_trim_may_be_called_while_requests_run():
    with two_sessions() as context:
        engine = Engine(picture_model(), None, context=context)
        inputs = [np.random.default_rng(2).standard_normal((1, 3, 64, 64)).astype(np.float32)]
        (expected,) = engine.run(inputs)
        wrong, ended = [], threading.Event()

        def request(shrinks):
            for _ in range(25):
                (output,) = engine.run(inputs, shrink_memory=shrinks)
                if output.tobytes() != expected.tobytes():
                    wrong.append(output)

        def trim():
            while not ended.is_set():
                engine.trim()

        threads = [threading.Thread(target=request, args=(n % 2 == 0,)) for n in range(4)]
        trimmer = threading.Thread(target=trim)
        for thread in (*threads, trimmer):
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        trimmer.join()
        assert not wrong
        assert engine.stats().done == 101  # trimming is no request


@pytest.mark.parametrize("name", ["identity", "spin", "sequence_insert", "gather"])
def test_any_model_can_be_trimmed(name):
    with Engine(getattr(models, name)(), None) as engine:
        engine.trim()
        engine.trim()


def test_a_closed_engine_cannot_be_trimmed():
    engine = Engine(models.identity(), None)
    engine.close()
    with pytest.raises(ClosedError):
        engine.trim()


@pytest.mark.parametrize("wrong", ["yes", 1, 0.0])
def test_shrink_memory_is_true_or_false(wrong):
    with pytest.raises(OptionError, match="shrink_memory must be True or False"):
        compile_model(models.identity(), shrink_memory=wrong)
    with Engine(models.identity(), None) as engine:
        for way in WAYS.values():
            with pytest.raises(OptionError, match="shrink_memory must be True or False, or None"):
                way(engine, [np.ones(1, np.float32)], shrink_memory=wrong)
