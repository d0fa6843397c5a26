"""Timeouts, priorities, and everything at once: each request ends once, as it should."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from deepsched import Context, Engine, MultiModelEngine
from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, OptionError, QueueFull
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.requests import LONG, SQUARE, STEPS, run_until_busy
from tests.support.threads import in_threads


def call(engine, how, inputs, **options):
    if how == "run":
        return engine.run(inputs, **options)
    if how == "submit":
        return engine.submit(inputs, **options).result()
    return asyncio.run(engine.run_async(inputs, **options))


HOWS = pytest.mark.parametrize("how", ["run", "submit", "run_async"])


@HOWS
@pytest.mark.parametrize("is_known", [False, True])
def test_a_run_that_takes_too_long_is_stopped(spin, how, is_known):
    if is_known:  # then the caller runs it itself, though it turns out long
        for _ in range(3):
            spin.run([np.array(1, np.int64), SQUARE])
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s after it was sent"):
        call(spin, how, LONG, timeout=0.1)
    assert 0.1 <= time.monotonic() - begin < 20
    # The stream goes on.
    assert call(spin, how, [STEPS, SQUARE], timeout=60)[0].shape == (64, 64)
    assert spin.stats().expired == 1


@HOWS
def test_a_request_that_expires_in_the_queue_never_runs(spin, how):
    blocker = run_until_busy(spin)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s after .* while it waited for a stream"):
        call(spin, how, LONG, timeout=0.05)
    assert blocker.running()
    blocker.cancel()
    assert spin.run([STEPS, SQUARE])[0].shape == (64, 64)
    stats = spin.stats()
    assert (stats.done, stats.expired, stats.cancelled) == (1, 1, 1)
    assert stats.running.count == 2


@HOWS
def test_waiting_for_room_counts_against_the_timeout(how):
    with Context(num_cores=1, queue_capacity=1) as context:
        engine = Engine(models.spin(), None, context=context)
        blocker = run_until_busy(engine)
        queued = engine.submit([STEPS, SQUARE])
        with pytest.raises(DeadlineExceeded):
            call(engine, how, [STEPS, SQUARE], timeout=0.05)
        blocker.cancel()
        assert queued.result(60)[0].shape == (64, 64)


def test_an_earlier_deadline_wakes_the_watcher():
    with unpinned(2) as context:
        engine = Engine(models.spin(), None, context=context)
        patient = engine.submit(LONG, timeout=100)
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            engine.run(LONG, timeout=0.1)
        assert time.monotonic() - begin < 20
        patient.cancel()


def test_a_stop_never_hits_the_next_run(spin):
    """Runs end at about their deadline, right and left of it, back to back."""
    for _ in range(3):
        spin.run([STEPS, SQUARE])
    typical = spin.stats().running.p50
    outcomes = {"done": 0, "late": 0}
    for i in range(300):
        try:
            spin.run([STEPS, SQUARE], timeout=typical * (0.5 + i % 10 / 10))
            outcomes["done"] += 1
        except DeadlineExceeded:
            outcomes["late"] += 1
        assert spin.run([STEPS, SQUARE])[0].shape == (64, 64)
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan"), object()])
def test_timeouts_are_checked(spin, timeout):
    with pytest.raises(OptionError, match="timeout must be"):
        spin.run([STEPS, SQUARE], timeout=timeout)


@pytest.mark.parametrize("priority", [2, -2, 0.5, "high", None])
def test_priorities_are_checked(spin, priority):
    with pytest.raises(OptionError, match="priority must be"):
        spin.run([STEPS, SQUARE], priority=priority)


def test_requests_run_by_priority_then_in_order_of_arrival(spin):
    ended = []
    blocker = run_until_busy(spin)
    futures = []
    for name, priority in [("c", -1), ("n", 0), ("u", 1), ("c", -1), ("n", 0), ("u", 1)]:
        future = spin.submit([STEPS, SQUARE], priority=priority)
        future.add_done_callback(lambda _, name=name: ended.append(name))
        futures.append(future)
    blocker.cancel()
    for future in futures:
        future.result(60)
    assert ended == ["u", "u", "n", "n", "c", "c"]


@pytest.mark.parametrize(
    "options",
    [
        {"queue_capacity": 0},
        {"queue_capacity": 1.5},
        {"queue_capacity": True},
        {"spin": "fast"},
        {"spin": None},
    ],
)
def test_options_of_limits_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Context(**options)


@pytest.mark.parametrize("spin", ["auto", "latency", "power"])
def test_every_way_to_spin_serves(spin):
    with Context(spin=spin) as context:
        engine = Engine(models.mlp(), None, context=context)
        x = np.ones((1, 64), np.float32)
        in_threads(4, lambda _: [engine.run([x]) for _ in range(50)])
        assert engine.stats().done == 200


@pytest.mark.parametrize(
    ("num_streams", "scheduler"), [(1, "multi_stream"), (3, "multi_stream"), (5, "elastic")]
)
def test_everything_at_once(num_streams, scheduler):
    """Threads, futures, loops and maps; failures, timeouts, cancels, rejections, two engines, and
    a close under load. Every request ends once; every result is its caller's own."""
    topology_options = {"queue_capacity": 8}
    ends = {"done": 0, "failed": 0, "expired": 0, "cancelled": 0, "rejected": 0, "closed": 0}
    lock = threading.Lock()

    def note(end):
        with lock:
            ends[end] += 1

    def check(outputs, value):
        assert outputs[0].tolist() == [value]
        note("done")

    def settle(get, value):
        try:
            check(get(), value)
        except InferenceError:
            assert value is None
            note("failed")
        except DeadlineExceeded:
            note("expired")
        except (CancelledError, asyncio.CancelledError):
            note("cancelled")
        except ClosedError:
            note("closed")
        except QueueFull:
            note("rejected")

    def inputs(rng):
        size = rng.randrange(1, 300)
        x = np.arange(size, dtype=np.float32) + rng.randrange(10_000)
        if rng.random() < 0.1:
            return [x, np.array([size], np.int64)], None
        index = rng.randrange(size)
        return [x, np.array([index], np.int64)], float(x[index])

    def options(rng):
        return {
            "timeout": rng.choice([None, None, 1e-5, 1e-3, 60]),
            "priority": rng.choice([-1, 0, 0, 1]),
        }

    def by_run(engine, rng):
        for _ in range(300):
            value = inputs(rng)
            settle(lambda value=value: engine.run(value[0], **options(rng)), value[1])

    def by_future(engine, rng):
        for _ in range(60):
            futures = []
            for _ in range(5):
                value = inputs(rng)
                try:
                    block = rng.random() < 0.7
                    futures.append((engine.submit(value[0], block=block, **options(rng)), value[1]))
                except QueueFull:
                    note("rejected")
                except DeadlineExceeded:
                    note("expired")
                except ClosedError:
                    note("closed")
            for future, value in futures:
                if rng.random() < 0.2:
                    future.cancel()
                settle(lambda future=future: future.result(60), value)

    def by_loop(engine, rng):
        async def one():
            value = inputs(rng)
            task = asyncio.ensure_future(engine.run_async(value[0], **options(rng)))
            if rng.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            settle(task.result, value[1])

        async def main():
            for _ in range(15):
                await asyncio.gather(*(one() for _ in range(20)))

        asyncio.run(main())

    def by_map(engine, rng):
        for _ in range(15):
            values = [inputs(rng) for _ in range(20)]
            results = engine.map([value[0] for value in values], priority=rng.choice([-1, 0, 1]))
            for _, value in values:
                try:
                    check(next(results), value)
                except InferenceError:
                    assert value is None
                    note("failed")
                    break
                except ClosedError:
                    note("closed")
                    break

    with unpinned(num_streams, scheduler, **topology_options) as context:
        engine = Engine(models.gather(), None, context=context)
        doomed = MultiModelEngine(models.gather(), None, context)
        if scheduler == "elastic":  # as if the model scaled well
            for one in (engine, doomed):
                widths = [high - low for low, high in context._tree.leaves]
                one._model.set_run_ns([60_000 // width for width in widths])
        work = [by_run, by_run, by_future, by_future, by_loop, by_loop, by_map]

        def body(i):
            if i == len(work):
                for _ in range(200):
                    doomed.run([np.zeros(1, np.float32), np.zeros(1, np.int64)], priority=1)
                doomed.close()
            else:
                work[i](doomed if i % 2 and i != 5 else engine, random.Random(i))

        in_threads(len(work) + 1, body)
        stats = context.stats()
        assert stats.queue_depth == 0
        assert stats.queue_depth_max <= 8
        assert ends["done"] > 0
        assert ends["closed"] > 0
        assert ends["expired"] > 0
        # A cancel or a timeout may win against a run that was done all the same.
        assert stats.failed >= ends["failed"]
        assert stats.rejected == ends["rejected"]
        while context._dispatcher.num_busy:  # a worker that was woken for nothing is yet to leave
            threading.Event().wait(0.001)
        assert engine.run([np.ones(1, np.float32), np.zeros(1, np.int64)])[0].tolist() == [1]


@pytest.mark.parametrize("how", ["submit", "run_async", "map", "run"])
def test_the_interpreter_may_end_with_requests_under_way(how):
    code = f"""
        import asyncio, itertools, threading
        import numpy as np
        from deepsched import compile_model
        from tests.support import models

        engine = compile_model(models.spin(), None, scheduler="multi_stream", num_streams=1)
        inputs = [np.array(3000, np.int64), np.zeros((64, 64), np.float32)]
        engine.run(inputs)
        if {how!r} == "submit":
            futures = [engine.submit(inputs) for _ in range(20)]
        elif {how!r} == "run_async":
            async def main():
                tasks = [asyncio.ensure_future(engine.run_async(inputs)) for _ in range(20)]
                await asyncio.sleep(0)
            asyncio.run(main())
        elif {how!r} == "map":
            results = engine.map(itertools.repeat(inputs))
            next(results)
        else:
            for _ in range(4):
                threading.Thread(
                    target=lambda: [engine.run(inputs) for _ in range(1000)], daemon=True
                ).start()
            engine.run(inputs)
        print("ends")
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert process.stdout == "ends\n"
    assert process.returncode == 0, process.stderr
