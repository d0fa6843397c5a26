"""submit, run_async, map, batched_run: the right result to the right caller, lazily, in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper

from deepsched import Context, Engine, Topology, compile_model
from deepsched.errors import (
    ClosedError,
    DeadlineExceeded,
    InferenceError,
    InputError,
    InputTypeError,
    OptionError,
    QueueFull,
)
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.requests import BAD, LONG, SQUARE, STEPS, item, run_until_busy


@pytest.fixture
def gather():
    with unpinned(2) as context:
        yield Engine(models.gather(), None, context=context)


# --- submit -------------------------------------------------------------------------------------


def test_futures_bring_the_right_results_and_errors(gather):
    futures = [gather.submit(BAD if i % 7 == 3 else item(i)) for i in range(500)]
    done, _ = concurrent.futures.wait(futures, timeout=60)
    assert len(done) == 500
    for i, future in enumerate(futures):
        if i % 7 == 3:
            assert isinstance(future.exception(), InferenceError)
        else:
            assert future.result()[0].tolist() == [i]


def test_callbacks_run_and_may_call_the_engine_again(gather):
    results = []
    finished = threading.Event()

    def again(future):
        results.append(future.result()[0].item())
        if len(results) < 5:
            gather.submit(item(len(results))).add_done_callback(again)
        else:
            finished.set()

    gather.submit(item(0)).add_done_callback(again)
    assert finished.wait(60)
    assert results == [0, 1, 2, 3, 4]


def test_a_callback_may_close_the_engine():
    engine = compile_model(models.mlp())
    closed = threading.Event()

    def close(future):
        engine.close()
        closed.set()

    engine.submit([np.zeros((1, 64), np.float32)]).add_done_callback(close)
    assert closed.wait(60)
    with pytest.raises(ClosedError):
        engine.submit([np.zeros((1, 64), np.float32)])


def test_a_queued_request_can_be_cancelled_and_never_runs(spin):
    first = run_until_busy(spin)
    second = spin.submit([STEPS, SQUARE])
    assert second.cancel()
    assert second.cancelled()
    assert second.cancel()  # again is no error
    assert first.cancel()
    third = spin.submit([STEPS, SQUARE])
    assert third.result(60)[0].shape == (64, 64)
    assert not third.cancel()
    stats = spin.stats()
    assert (stats.done, stats.cancelled) == (1, 2)
    assert stats.running.count == 2  # the stopped one and the third


def test_a_running_request_can_be_cancelled(spin):
    future = run_until_busy(spin)
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert future in concurrent.futures.wait([future]).done
    assert spin.run([STEPS, SQUARE])[0].shape == (64, 64)


def test_callbacks_may_cancel_each_others_futures(spin):
    running = run_until_busy(spin)
    one, other = spin.submit(LONG), spin.submit(LONG)
    both_called = threading.Barrier(2, timeout=20)
    for mine, its in ((one, other), (other, one)):
        mine.add_done_callback(lambda _, its=its: (both_called.wait(), its.cancel()))
    threads = [threading.Thread(target=future.cancel) for future in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert one.cancelled() and other.cancelled() and not both_called.broken
    running.cancel()


def test_closing_resolves_every_future():
    engine = compile_model(models.spin(), None)
    futures = [engine.submit([STEPS, SQUARE]) for _ in range(50)]
    engine.close()
    outcomes = [future.exception(60) for future in futures]
    assert all(outcome is None or isinstance(outcome, ClosedError) for outcome in outcomes)


def test_a_full_queue_rejects_or_makes_wait():
    with Context(num_cores=1, queue_capacity=3) as context:
        engine = Engine(models.spin(), None, context=context)
        first = run_until_busy(engine)
        queued = [engine.submit([STEPS, SQUARE]) for _ in range(3)]
        with pytest.raises(QueueFull, match="queue_capacity"):
            engine.submit([STEPS, SQUARE], block=False)
        assert engine.stats().rejected == 1
        waiting = []
        submitter = threading.Thread(target=lambda: waiting.append(engine.submit([STEPS, SQUARE])))
        submitter.start()
        first.cancel()
        submitter.join(60)
        for future in queued + waiting:
            assert future.result(60)[0].shape == (64, 64)


@pytest.mark.parametrize("how", ["run", "submit", "run_async"])
def test_inputs_are_checked_at_the_call(gather, how):
    wrong = [np.array([1], np.float64), np.array([0], np.int64)]
    with pytest.raises(InputTypeError, match="float32"):
        if how == "run_async":
            asyncio.run(gather.run_async(wrong))
        else:
            getattr(gather, how)(wrong)


def test_val_inp_false_gives_the_same_results(gather):
    for way in (gather.run, lambda inputs, **k: gather.submit(inputs, **k).result()):
        assert way(item(7), val_inp=False)[0].tolist() == [7]
        # What is not a C-contiguous array is converted all the same.
        assert way([[8.0], np.array([9, 0])[1:]], val_inp=False)[0].tolist() == [8]


# --- run_async ----------------------------------------------------------------------------------


def test_many_coroutines_get_their_own_results(gather):
    async def call(i):
        if i % 7 == 3:
            with pytest.raises(InferenceError):
                await gather.run_async(BAD)
            return None
        return (await gather.run_async({"x": item(i)[0], "index": item(i)[1]}))[0].item()

    async def main():
        return await asyncio.gather(*(call(i) for i in range(500)))

    results = asyncio.run(main())
    assert results == [None if i % 7 == 3 else i for i in range(500)]
    assert asyncio.run(main()) == results  # a second loop, after the first was closed


def test_run_async_makes_no_thread_and_blocks_no_loop(spin):
    async def main():
        before = threading.active_count()
        ticks = 0
        task = asyncio.ensure_future(spin.run_async([np.array(20_000, np.int64), SQUARE]))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        assert threading.active_count() == before
        return ticks

    assert asyncio.run(main()) > 1


def test_cancelling_a_task_cancels_its_request(spin):
    async def main():
        running = asyncio.ensure_future(spin.run_async(LONG))
        queued = asyncio.ensure_future(spin.run_async(LONG))
        await asyncio.sleep(0)  # both start
        while not spin.context._shared.dispatcher.num_busy:
            await asyncio.sleep(0.001)
        for task in (queued, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await spin.run_async([STEPS, SQUARE])

    assert asyncio.run(main())[0].shape == (64, 64)
    assert spin.stats().cancelled == 2


def test_a_loop_may_end_with_requests_under_way(spin):
    async def main():
        task = asyncio.ensure_future(spin.run_async([STEPS, SQUARE]))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    assert spin.run([STEPS, SQUARE])[0].shape == (64, 64)


def test_a_loop_that_is_gone_leaves_no_file_open(spin):
    async def main():
        task = asyncio.ensure_future(spin.run_async(LONG))
        await asyncio.sleep(0)
        task.cancel()

    async def once():
        await spin.run_async([STEPS, SQUARE])

    asyncio.run(once())
    num_before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        asyncio.run(main())
    spin.run([STEPS, SQUARE])  # one stream: what was cancelled has ended
    asyncio.run(once())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= num_before


def test_coroutines_wait_for_room_in_a_full_queue():
    async def main(engine):
        calls = [engine.run_async([STEPS, SQUARE]) for _ in range(30)]
        return await asyncio.gather(*calls)

    with Context(num_cores=1, queue_capacity=2) as context:
        engine = Engine(models.spin(), None, context=context)
        results = asyncio.run(main(engine))
        assert [output.shape for (output,) in results] == [(64, 64)] * 30
        assert engine.stats().rejected == 0


def test_coroutines_may_ask_not_to_wait_for_room():
    with (
        unpinned(1, queue_capacity=1) as context,
        Engine(models.spin(), None, context=context) as engine,
    ):
        futures = [run_until_busy(engine), engine.submit(LONG)]
        with pytest.raises(QueueFull, match="queue_capacity"):
            asyncio.run(_run_at_once(engine))
        assert engine.stats().rejected == 1
        for future in futures:
            future.cancel()


async def _run_at_once(engine):
    return await engine.run_async([STEPS, SQUARE], block=False)


def test_a_loop_runs_what_takes_microseconds_itself(gather):
    async def ask(count):
        for number in range(count):
            (y,) = await gather.run_async(item(number))
            assert y.item() == number

    asyncio.run(ask(300))
    assert gather.stats().inline > 100


def test_a_loop_leaves_longer_runs_to_workers_though_short_ones_came_before(spin):
    async def main():
        for _ in range(50):
            await spin.run_async([np.array(1, np.int64), SQUARE])
        ticks = 0
        under_way = asyncio.ensure_future(spin.run_async(LONG, timeout=0.3))
        while not under_way.done():
            ticks += 1
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineExceeded):
            await under_way
        return ticks

    assert asyncio.run(main()) > 10


def test_a_task_whose_requests_end_at_once_leaves_others_their_turn(gather):
    async def main():
        is_over = False

        async def ask():
            while not is_over:
                await gather.run_async(item(1))

        asking = asyncio.ensure_future(ask())
        for _ in range(20):
            await asyncio.sleep(0.001)
        is_over = True
        await asking

    asyncio.run(main())


def test_loops_of_several_threads_share_an_engine(gather):
    results = {}

    async def main(i):
        calls = (gather.run_async(item(1000 * i + n)) for n in range(100))
        return [output.item() for (output,) in await asyncio.gather(*calls)]

    threads = [
        threading.Thread(target=lambda i=i: results.update({i: asyncio.run(main(i))}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [1000 * i + n for n in range(100)] for i in range(4)}


# --- Short runs beside long ones -------------------------------------------------------------


@pytest.fixture
def pinned():
    """Two streams on cores of their own, if there are as many; (a short model, a long one)."""
    with Context(num_streams=min(2, len(Topology.detect().cores))) as context:
        short = Engine(models.gather(), None, context=context)
        for _ in range(200):  # now the runtime knows how short
            short.run(item(1))
        yield short, Engine(models.spin(), None, context=context)


WAYS = {
    "run": lambda engine: engine.run(item(5)),
    "submit": lambda engine: engine.submit(item(5)).result(),
    "run_async": lambda engine: asyncio.run(engine.run_async(item(5))),
    "map": lambda engine: next(iter(engine.map([item(5)]))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_short_run_waits_for_no_long_one_elsewhere(pinned, way):
    short, long = pinned
    mask = os.sched_getaffinity(0)
    for cpu in sorted(mask)[:2]:  # wherever the caller stands
        running = [run_until_busy(long) for _ in range(short.num_streams - 1)]
        os.sched_setaffinity(0, {cpu})
        try:
            # The long run takes minutes: this returns only if another stream serves it.
            assert WAYS[way](short)[0] == [5]
        finally:
            os.sched_setaffinity(0, mask)
            for future in running:
                future.cancel()


def test_a_map_leaves_long_runs_to_the_workers(pinned):
    short, long = pinned
    items = ([np.array([i], np.float32), BAD[1] * 0] for i in range(100))
    with short.context.trace() as records:
        running = [run_until_busy(long) for _ in range(short.num_streams)]
        queued = [long.submit(LONG) for _ in running]
        timer = threading.Timer(0.2, lambda: [future.cancel() for future in running + queued])
        timer.start()
        results = short.map(items, in_flight=50)
        assert [int(output[0]) for (output,) in results] == list(range(100))
        timer.join()
        while short.context._shared.dispatcher.num_busy:  # a stopped run is yet to end
            threading.Event().wait(0.001)
    long_runs = [record for record in records if record.outcome == "cancelled" and record.ran_ns]
    assert len(long_runs) >= len(running)
    assert all(record.by_worker for record in long_runs)


# --- map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [None, 1, 3, 1000])
def test_map_yields_in_order(gather, in_flight):
    results = gather.map((item(i) for i in range(300)), in_flight)
    assert [output.item() for (output,) in results] == list(range(300))


def test_map_unordered_yields_each_once(gather):
    results = gather.map((item(i) for i in range(300)), ordered=False)
    assert sorted(output.item() for (output,) in results) == list(range(300))


@pytest.mark.parametrize("ordered", [True, False])
def test_map_takes_items_lazily(gather, ordered):
    taken = itertools.count()
    num_taken = 0

    def items():
        nonlocal num_taken
        for i in taken:  # endless
            num_taken += 1
            yield item(i)

    results = gather.map(items(), in_flight=4, ordered=ordered)
    assert num_taken == 0
    for n in range(1, 50):
        next(results)
        assert num_taken <= n + 4
    results.close()
    assert gather.stats().queue_depth <= 4
    assert gather.run(item(1))[0].tolist() == [1]


@pytest.mark.parametrize(("bad", "error"), [(BAD, InferenceError), ([1], InputError)])
def test_map_raises_in_the_items_place(gather, bad, error):
    results = gather.map(bad if i == 20 else item(i) for i in itertools.count())
    for i in range(20):
        assert next(results)[0].item() == i
    with pytest.raises(error):
        next(results)
    assert gather.run(item(1))[0].tolist() == [1]


def test_map_passes_on_what_the_items_raise(gather):
    def items():
        yield item(0)
        raise ZeroDivisionError

    results = gather.map(items())
    assert next(results)[0].item() == 0
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_dropped_map_cancels_its_requests(spin):
    results = spin.map(itertools.chain([[STEPS, SQUARE]], itertools.repeat(LONG)), in_flight=2)
    next(results)
    results.close()
    assert spin.run([STEPS, SQUARE])[0].shape == (64, 64)


def test_map_with_progress_yields_the_same(gather, capsys):
    items = [item(i) for i in range(5)]
    assert [output.item() for (output,) in gather.map(items, progress=True)] == list(range(5))
    assert list(gather.map([])) == []


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, "4"])
def test_in_flight_is_checked(gather, in_flight):
    with pytest.raises(OptionError, match="in_flight"):
        gather.map([], in_flight)


# --- batched_run --------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 7, 64])
def test_a_batch_is_cut_over_the_streams_and_joined(total):
    x = np.random.default_rng(0).standard_normal((total, 64)).astype(np.float32)
    with unpinned(3) as context:
        engine = Engine(models.mlp(), None, context=context)
        (expected,) = engine.run([x])
        (y,) = engine.batched_run([x])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        assert engine.stats().done == 1 + min(3, total)


def test_a_batch_is_cut_into_the_engines_batches():
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    with Engine(models.mlp(), batch_size=2) as engine:
        (y,) = engine.batched_run({"x": x})
        parts = [engine.run([x[i : i + 2]])[0] for i in (0, 2, 4)]
        assert (y == np.concatenate(parts)).all()
        with pytest.raises(InputError, match="cannot be split into parts of 2"):
            engine.batched_run([x[:5]])


def test_inputs_that_cannot_be_cut_are_refused(gather):
    with pytest.raises(InputError, match="same first dimension"):
        gather.batched_run([np.zeros(4, np.float32), np.zeros(3, np.int64)])
    with pytest.raises(InputError, match="first dimension to split"):
        gather.batched_run([np.float32(1), np.int64(1)])


def test_parts_that_cannot_be_joined_are_refused():
    # Where x is not zero: two rows, and as many columns as there are such places.
    places = models.make(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [models.tensor("x", ["batch", 2])],
        [models.tensor("y", [2, "places"], TensorProto.INT64)],
    )
    with Engine(places) as engine:
        assert engine.batched_run([np.float32([[0, 1], [1, 0]])])[0].shape == (4, 1)
        with pytest.raises(InputError, match=r"output 'y' has parts .* \(1,\), \(2,\), which"):
            engine.batched_run([np.float32([[0, 1], [1, 1]])])
