"""Many tasks of one event loop: what they start in one turn of it runs together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import contextmanager

import numpy as np
import pytest

from deepsched import Engine
from deepsched.errors import ClosedError, InferenceError, InputError, QueueFull
from deepsched.invocation.event_loop import _CROWD, LoopInbox, _inbox_of
from tests.support import models
from tests.support.batches import first_only, let_run_together, only_one, pick, picks
from tests.support.contexts import unpinned
from tests.support.injection import at_each_line
from tests.support.requests import run_until_busy

NUM_TASKS = 2 * _CROWD


@contextmanager
def batching(model, num_streams=1, **options):
    with unpinned(num_streams, **options) as context:
        engine = Engine(model, None, context=context, batching="off")
        let_run_together(engine)
        yield engine


LARGEST = [np.full((1, 3), 1e6, np.float32), np.full((1, 1), 2)]
"""For `picks`: what runs as short with smaller numbers is known from these."""


async def start_crowd(engine, requests, known=LARGEST, **options):
    """Starts all in one turn of a loop that knows a crowd, and such inputs. The tasks that are
    returned wait for the end of the turn."""
    inbox = _inbox_of(asyncio.get_running_loop()).inbox
    while not (
        request := engine._model.start(known, inbox, None, None, 0, True, False, True, False, True)
    ).ran_inline:
        while not inbox.take():
            await asyncio.sleep(0)
        request.outputs()  # learns how long it took
    return await start_gathering(engine, requests, **options)


async def start_gathering(engine, requests, **options):
    _inbox_of(asyncio.get_running_loop()).gathers = True
    tasks = [asyncio.create_task(engine.run_async(inputs, **options)) for inputs in requests]
    await asyncio.sleep(0)
    return tasks


async def ends_of(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


async def run_crowd(engine, requests, known=LARGEST):
    return await ends_of(await start_crowd(engine, requests, known))


def runs_together(engine):
    return any(size > 1 for size in engine.stats().by_batch)


def test_a_crowd_of_tasks_runs_together_and_each_has_its_own_answer():
    async def call_on(engine, i):
        while not runs_together(engine):
            for k in range(200):
                inputs, expected = pick(200 * i + k, items=1 + k % 2)
                np.testing.assert_array_equal((await engine.run_async(inputs))[0], expected)

    async def main(engine):
        await asyncio.gather(*(call_on(engine, i) for i in range(NUM_TASKS)))

    with batching(picks(), num_streams=2) as engine:
        asyncio.run(main(engine))
        stats = engine.stats()
        assert stats.failed == 0
        assert stats.waiting.max < 60


def test_few_tasks_are_not_held_up():
    async def call_on(engine, until):
        while time.monotonic() < until:
            await engine.run_async(pick(1)[0])
            assert not _inbox_of(asyncio.get_running_loop()).gathers

    async def main(engine):
        until = time.monotonic() + 0.1
        await asyncio.gather(*(call_on(engine, until) for _ in range(_CROWD - 1)))

    with batching(picks()) as engine:
        asyncio.run(main(engine))


def test_a_crowd_that_has_gone_is_forgotten():
    async def main(engine):
        loop_inbox = _inbox_of(asyncio.get_running_loop())
        await run_crowd(engine, [pick(i)[0] for i in range(NUM_TASKS)])
        await engine.run_async(pick(1)[0])
        return loop_inbox.gathers

    with batching(picks()) as engine:
        assert not asyncio.run(main(engine))


def test_inputs_that_fit_no_model_fail_their_own_request():
    good = [pick(i) for i in range(NUM_TASKS)]
    requests = [inputs for inputs, _ in good]
    requests[3] = [requests[3][0]]
    requests[5] = [requests[5][0].astype(np.float64), requests[5][1]]
    requests[7] = [requests[7][0], np.full((1, 1), 99)]  # out of range: fails the joined run, too

    with batching(picks()) as engine:
        answers = asyncio.run(run_crowd(engine, requests))
    for i, answer in enumerate(answers):
        if i in (3, 5):
            assert isinstance(answer, InputError)
        elif i == 7:
            assert isinstance(answer, InferenceError)
        else:
            np.testing.assert_array_equal(answer[0], good[i][1])


@pytest.mark.parametrize("model", [first_only, only_one])
def test_a_model_whose_items_do_not_go_together_answers_all_the_same(model):
    rows = [[np.full((1, 4), i, np.float32)] for i in range(NUM_TASKS)]
    with batching(model()) as engine:
        for _ in range(4):
            answers = asyncio.run(run_crowd(engine, rows, known=[np.full((1, 4), 1e6, np.float32)]))
            for (row,), (answer,) in zip(rows, answers, strict=True):
                np.testing.assert_array_equal(answer, row)
        assert engine._model.batching_failure


def test_a_task_that_is_cancelled_before_the_turn_ends_is_left_out():
    async def main(engine):
        tasks = await start_crowd(engine, [pick(i)[0] for i in range(NUM_TASKS)])
        before = engine.stats().done
        tasks[2].cancel()
        return await ends_of(tasks), engine.stats().done - before

    with batching(picks()) as engine:
        ends, done = asyncio.run(main(engine))
    assert isinstance(ends.pop(2), asyncio.CancelledError)
    assert all(isinstance(end, list) for end in ends)
    assert done == NUM_TASKS - 1


def test_where_no_stream_is_free_they_wait_together_and_a_cancelled_one_harms_nobody():
    async def main(engine, blocker):
        tasks = await start_crowd(engine, [])
        long = run_until_busy(blocker)
        tasks = await start_gathering(engine, [pick(i)[0] for i in range(NUM_TASKS)])
        await asyncio.sleep(0)
        assert engine.stats().queue_depth == 1
        tasks[1].cancel()
        long.cancel()
        return await ends_of(tasks)

    with batching(picks()) as engine:
        blocker = Engine(models.spin(), None, context=engine.context)
        ends = asyncio.run(main(engine, blocker))
    assert isinstance(ends.pop(1), asyncio.CancelledError)
    expected = [pick(i)[1] for i in range(NUM_TASKS) if i != 1]
    for (answer,), value in zip(ends, expected, strict=True):
        np.testing.assert_array_equal(answer, value)


def test_times_are_those_of_the_run():
    async def main(engine):
        begin = time.monotonic_ns()
        times = []
        await ends_of(await start_crowd(engine, [pick(0)[0]] * NUM_TASKS, times_ns=times))
        return begin, times, time.monotonic_ns()

    with batching(picks()) as engine:
        begin, (queued, started, ended), end = asyncio.run(main(engine))
        assert begin <= queued <= started < ended <= end


def test_an_engine_that_closes_in_between_says_so_to_each():
    async def main(engine):
        tasks = await start_crowd(engine, [pick(i)[0] for i in range(NUM_TASKS)])
        engine.close()
        return await ends_of(tasks)

    with batching(picks()) as engine:
        ends = asyncio.run(main(engine))
    assert all(isinstance(end, ClosedError) for end in ends)


def test_a_full_queue_refuses_or_waits_as_ever():
    async def main(engine, blocker):
        await start_crowd(engine, [])
        long = run_until_busy(blocker)
        waiting = [engine.submit(pick(0)[0]) for _ in range(2)]
        patient = await start_gathering(engine, [pick(i)[0] for i in range(NUM_TASKS)])
        hasty = await start_gathering(engine, [pick(0)[0]] * NUM_TASKS, block=False)
        refused = await ends_of(hasty)
        long.cancel()
        answers = await asyncio.gather(*patient)
        for future in waiting:
            future.result()
        return refused, answers

    with batching(picks(), queue_capacity=2) as engine:
        blocker = Engine(models.spin(), None, context=engine.context)
        refused, answers = asyncio.run(main(engine, blocker))
    assert all(isinstance(end, QueueFull) for end in refused)
    for i, (answer,) in enumerate(answers):
        np.testing.assert_array_equal(answer, pick(i)[1])


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_caller_may_fill_one_list_anew_for_each_call(has_begun):
    async def main(engine):
        await start_crowd(engine, [])
        inputs, tasks = [None, None], []
        for i in range(NUM_TASKS):
            inputs[:] = pick(i)[0]
            tasks.append(asyncio.create_task(engine.run_async(inputs)))
            if has_begun:
                await asyncio.sleep(0)
            _inbox_of(asyncio.get_running_loop()).gathers = True
        return await asyncio.gather(*tasks)

    with batching(picks()) as engine:
        answers = asyncio.run(main(engine))
    for i, (answer,) in enumerate(answers):
        np.testing.assert_array_equal(answer, pick(i)[1])


def test_a_crowd_whose_requests_may_not_run_together_stops_waiting_for_the_turns_end():
    shapes = [pick(i, width=2 + i)[0] for i in range(NUM_TASKS)]

    async def main(engine):
        await run_crowd(engine, shapes)
        return _inbox_of(asyncio.get_running_loop()).gathers

    with batching(picks()) as engine:
        assert not asyncio.run(main(engine))


def test_a_request_of_ten_thousand_costs_no_more_than_one_of_a_thousand():
    """Whatever their shapes: the work of a turn grows with what was started in it, not faster."""

    def seconds_of_one(engine, num_tasks):
        picked = [pick(i, width=2 + i % 3) for i in range(num_tasks)]

        async def main():
            begin = time.perf_counter()
            answers = await run_crowd(engine, [inputs for inputs, _ in picked])
            return (time.perf_counter() - begin) / num_tasks, answers

        seconds, answers = asyncio.run(main())
        for (answer,), (_, expected) in zip(answers, picked, strict=True):
            np.testing.assert_array_equal(answer, expected)
        return seconds

    with batching(picks(), queue_capacity=20_000) as engine:
        rounds = [[seconds_of_one(engine, n) for n in (1_000, 10_000)] for _ in range(2)]
    few, many = (min(column) for column in zip(*rounds, strict=True))
    assert many < 4 * few


class Interrupted(BaseException):
    """What a signal's handler raises."""


def test_an_exception_of_a_signals_handler_loses_no_request(monkeypatch):
    run_gathered = LoopInbox._run_gathered

    def interrupt():
        raise Interrupted

    def scenario(inject):
        def interrupted(inbox):
            with inject(interrupt):
                run_gathered(inbox)

        async def main():
            return await run_crowd(engine, [pick(i)[0] for i in range(NUM_TASKS)])

        monkeypatch.setattr(LoopInbox, "_run_gathered", interrupted)
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            task = loop.create_task(main())
            while not task.done():
                with contextlib.suppress(Interrupted):
                    loop.run_until_complete(asyncio.wait([task]))
            answers = task.result()
        for i, (answer,) in enumerate(answers):
            np.testing.assert_array_equal(answer, pick(i)[1])

    with batching(picks()) as engine:
        assert at_each_line(["invocation/event_loop.py"], scenario) > 20
