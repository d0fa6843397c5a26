"""Timeout and priority, the options of a request."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest

from deepsched import Context, Engine
from deepsched.errors import DeadlineExceeded, OptionError
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
    with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.1 s expired while it ran"):
        call(spin, how, LONG, timeout=0.1)
    assert 0.1 <= time.monotonic() - begin < 20
    # The stream goes on.
    assert call(spin, how, [STEPS, SQUARE], timeout=60)[0].shape == (64, 64)
    assert spin.stats().expired == 1


@HOWS
def test_a_request_that_expires_in_the_queue_never_runs(spin, how):
    blocker = run_until_busy(spin)
    with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.05 s expired while it waited"):
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


@pytest.mark.field
@pytest.mark.parametrize("overload", [3, 10])
def test_overload_with_timeouts_stops_few_runs(overload):
    """Callers enough to wait for several timeouts: each request is popped close to its deadline."""
    with unpinned(1) as context, Engine(models.spin(), None, context=context) as engine:
        steps = 500
        while (seconds := engine.timed_run(request := [np.array(steps), SQUARE])[1]) < 0.005:
            steps += steps // 4
        for _ in range(20):
            engine.run(request)
        before = engine.stats()
        end = time.monotonic() + 2

        def call(_):
            while time.monotonic() < end:
                with contextlib.suppress(DeadlineExceeded):
                    engine.run(request, timeout=7 * seconds)

        in_threads(7 * overload, call)
        stats = engine.stats()
    done = stats.done - before.done
    stopped = sum(stream.expired for stream in stats.streams)
    assert done > 20
    assert stopped < done / 2  # without the look at what is left, nine of ten runs are stopped


def test_an_idle_engine_refuses_nothing_that_is_not_late(spin):
    slow, quick = [np.array(100_000), SQUARE], [np.array(1), SQUARE]
    for _ in range(3):
        seconds = spin.timed_run(slow)[1]
        for _ in range(6):  # with less time than the run before took
            assert len(spin.run(quick, timeout=seconds / 2)) == 1
            assert len(spin.submit(quick, timeout=seconds / 2).result()) == 1


def test_a_burst_for_idle_streams_is_not_refused():
    """More requests than one wait for the moment that the other streams' workers take to wake."""
    slow, quick = [np.array(200_000), SQUARE], [np.array(1), SQUARE]
    with unpinned(4) as context, Engine(models.spin(), None, context=context) as engine:
        seconds = engine.timed_run(slow)[1]
        for _ in range(20):
            futures = [engine.submit(quick, timeout=seconds / 2) for _ in range(4)]
            assert all(len(future.result()) == 1 for future in futures)
