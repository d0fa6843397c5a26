"""Every way in at once, under failures, timeouts, cancels and a close: each request ends once."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from deepsched import Engine, MultiModelEngine
from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, QueueFull
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.threads import in_threads


@pytest.mark.parametrize(
    ("num_streams", "scheduler"), [(1, "multi_stream"), (3, "multi_stream"), (5, "elastic")]
)
def test_everything_at_once(num_streams, scheduler):
    """Threads, futures, loops and maps; failures, timeouts, cancels, rejections, two engines, and
    a close under load. Every request ends once; every result is its caller's own."""
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

    with unpinned(num_streams, scheduler, queue_capacity=8) as context:
        engine = Engine(models.gather(), None, context=context)
        doomed = MultiModelEngine(models.gather(), None, context)
        if scheduler == "elastic":  # as if the model scaled well
            for one in (engine, doomed):
                widths = [high - low for low, high in context._layout.tree.leaves]
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
        # A worker that was woken for nothing is yet to leave.
        while context._shared.dispatcher.num_busy:
            threading.Event().wait(0.001)
        assert engine.run([np.ones(1, np.float32), np.zeros(1, np.int64)])[0].tolist() == [1]


@pytest.mark.soak
def test_no_wake_up_is_lost_in_minutes_of_load():
    with unpinned(3) as context:
        engine = Engine(models.mlp(16, 1), None, context=context)
        x = np.zeros((1, 16), np.float32)
        in_threads(16, lambda _: [engine.run([x]) for _ in range(100_000)])
