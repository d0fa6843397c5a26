"""Requests meet core groups: order, overlap, backpressure, the end of everything."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from deepsched import Context, Engine, MultiModelEngine
from deepsched.errors import ClosedError, InferenceError
from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.model import Model
from deepsched.runtime.session import open_session
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.requests import SQUARE, STEPS
from tests.support.threads import in_threads


def overlapping(records):
    """Pairs of records whose runs overlap in time."""
    ordered = sorted(records, key=lambda record: record.started_ns)
    return [
        (first, second)
        for i, first in enumerate(ordered)
        for second in ordered[i + 1 :]
        if second.started_ns < first.ended_ns
    ]


@pytest.mark.parametrize("num_streams", [1, 2, 4, 70])
def test_a_stream_serves_one_request_at_a_time(num_streams):
    with unpinned(num_streams) as context:
        engine = Engine(models.mlp(), None, context=context, batching="off")
        x = np.zeros((1, 64), np.float32)
        with context.trace() as records:
            in_threads(8, lambda _: [engine.run([x]) for _ in range(100)])
        assert len(records) == 800
        for first, second in overlapping(records):
            assert first.stream != second.stream


def test_multi_stream_runs_requests_side_by_side():
    with unpinned(2) as context:
        engine = Engine(models.spin(), None, context=context)
        with context.trace() as records:
            in_threads(2, lambda _: [engine.run([STEPS, SQUARE]) for _ in range(20)])
        assert overlapping(records)
        assert {record.stream for record in records} == {0, 1}


def test_single_stream_runs_requests_in_order_of_arrival():
    with unpinned(2, "single_stream") as context:
        engine = Engine(models.spin(), None, context=context)
        with context.trace() as records:
            in_threads(4, lambda _: [engine.run([STEPS, SQUARE]) for _ in range(20)])
        assert context.num_streams == 1
        assert not overlapping(records)
        # Submitted is stamped just before the queue is entered; where two threads are within a
        # few microseconds of each other there, either may come first.
        arrived = [r.submitted_ns for r in sorted(records, key=lambda r: r.started_ns)]
        late = [later - sooner for sooner, later in zip(arrived, arrived[1:], strict=False)]
        assert sum(gap < 0 for gap in late) <= len(late) // 20, late


def test_engines_of_a_context_share_its_streams():
    with unpinned(2) as context:
        a = MultiModelEngine(models.spin(), None, context)
        b = Engine(models.mlp(), None, context=context, batching="off")
        x = np.zeros((1, 64), np.float32)

        def work(i):
            for _ in range(20):
                a.run([STEPS, SQUARE]) if i % 2 else b.run([x])

        with context.trace() as records:
            in_threads(4, work)
        for first, second in overlapping(records):
            assert first.stream != second.stream


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_every_caller_gets_its_own_result_or_error(num_streams):
    """Random sizes, some requests that fail in the kernel; results are checked by content."""
    with unpinned(num_streams) as context:
        engine = Engine(models.gather(), None, context=context)

        def work(i):
            rng = random.Random(i)
            for n in range(300):
                size = rng.randrange(1, 200)
                x = np.arange(size, dtype=np.float32) + 1000 * i + n
                if rng.random() < 0.1:
                    with pytest.raises(InferenceError, match="out of data bounds"):
                        engine.run([x, np.array([size], np.int64)])
                else:
                    index = rng.randrange(size)
                    (y,) = engine.run([x, np.array([index], np.int64)])
                    assert y.tolist() == [x[index]]

        in_threads(8, work)


def test_a_full_queue_makes_callers_wait_and_loses_nothing():
    dispatcher = Dispatcher([None], queue_capacity=2, spin_ns=0, thread_prefix="full")
    session = open_session(
        models.spin().SerializeToString(), num_threads=1, cpus=None, thread_prefix="f", config={}
    )
    model = Model(dispatcher, [session])
    done = []
    in_threads(12, lambda i: [done.append(model.run([STEPS, SQUARE])[0].shape) for _ in range(10)])
    assert done == [(64, 64)] * 120
    model.close()
    dispatcher.close()


@pytest.mark.parametrize("through_context", [False, True])
def test_calls_under_a_close_return_or_raise_closed(through_context):
    for _ in range(10):
        context = unpinned(2)
        engine = Engine(models.spin(), None, context=context)
        outcomes = []
        started = threading.Semaphore(0)

        def work(i, engine=engine, outcomes=outcomes, started=started):
            for _ in range(50):
                try:
                    assert engine.run([STEPS, SQUARE])[0].shape == (64, 64)
                    outcomes.append("result")
                    started.release()
                except ClosedError:
                    outcomes.append("closed")

        def close(_, engine=engine, context=context, started=started):
            for _ in range(5):
                started.acquire()
            (context if through_context else engine).close()

        in_threads(7, lambda i, work=work, close=close: close(i) if i == 6 else work(i))
        assert len(outcomes) == 6 * 50
        assert {"result", "closed"} == set(outcomes)
        with pytest.raises(ClosedError):
            engine.run([STEPS, SQUARE])
        context.close()


def test_closing_an_engine_leaves_others_of_its_context_running():
    with unpinned(2) as context:
        a = Engine(models.mlp(), None, context=context)
        b = Engine(models.mlp(), None, context=context)
        x = np.ones((1, 64), np.float32)
        expected = b.run([x])[0]
        a.close()
        assert (b.run([x])[0] == expected).all()
        with pytest.raises(ClosedError):
            a.run([x])


@pytest.mark.parametrize("spin", ["auto", "latency", "power"])
def test_every_way_to_spin_serves(spin):
    with Context(spin=spin) as context:
        engine = Engine(models.mlp(), None, context=context)
        x = np.ones((1, 64), np.float32)
        in_threads(4, lambda _: [engine.run([x]) for _ in range(50)])
        assert engine.stats().done == 200
