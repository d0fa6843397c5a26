"""Requests that wait run together: each gets its own answer, and nobody is overtaken or lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deepsched import Engine
from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError
from tests.support import models
from tests.support.batches import HALVED, SIZES, first_only, let_run_together, only_one, pick, picks
from tests.support.contexts import unpinned
from tests.support.requests import run_until_busy
from tests.support.threads import in_threads


def paced():
    """y = x; takes as many steps as the largest of `steps`."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["again"]),
        ],
        "body",
        [
            models.tensor("i", [], TensorProto.INT64),
            models.tensor("go_on", [], TensorProto.BOOL),
            models.tensor("state", ["n", 64]),
        ],
        [models.tensor("again", [], TensorProto.BOOL), models.tensor("next", ["n", 64])],
    )
    return models.make(
        [
            helper.make_node("ReduceMax", ["steps"], ["most"], keepdims=0),
            helper.make_node(
                "Constant",
                [],
                ["true"],
                value=helper.make_tensor("t", TensorProto.BOOL, [], [True]),
            ),
            helper.make_node("Loop", ["most", "true", "x"], ["y"], body=body),
        ],
        [models.tensor("steps", ["n", 1], TensorProto.INT64), models.tensor("x", ["n", 64])],
        [models.tensor("y", ["n", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )


@contextmanager
def batching(model, num_streams=1, scheduler="multi_stream", capacity=1024, **options):
    """An engine whose requests run together, and one that keeps its streams busy."""
    with unpinned(num_streams, scheduler, queue_capacity=capacity) as context:
        engine = Engine(model, None, context=context, batching="off")
        let_run_together(engine, **options)
        yield engine, Engine(models.spin(), None, context=context)


def waiting(engine, blocker, requests, **options):
    """Submits the requests while the stream is busy, then lets it go. Returns their futures."""
    long = run_until_busy(blocker)
    futures = [engine.submit(inputs, **options) for inputs in requests]
    long.cancel()
    return futures


def test_what_waits_runs_as_one_batch():
    with batching(picks()) as (engine, blocker):
        items = [pick(i) for i in range(5)]
        with engine._context.trace() as trace:
            futures = waiting(engine, blocker, [inputs for inputs, _ in items])
            results = [future.result() for future in futures]
        for (_, expected), (y,) in zip(items, results, strict=True):
            assert y.tolist() == expected.tolist()
        assert engine.stats().by_batch == {5: 1}
        assert engine.stats().mean_batch == 5
        assert engine.stats().done == 5
        records = [record for record in trace if record.num_together == 5]
        assert len(records) == 5
        assert len({(record.started_ns, record.ended_ns) for record in records}) == 1


def test_a_caller_keeps_its_own_part_only():
    with batching(picks()) as (engine, blocker):
        futures = waiting(engine, blocker, [pick(i)[0] for i in range(3)])
        outputs = [future.result()[0] for future in futures]
        addresses = sorted(y.__array_interface__["data"][0] for y in outputs)
        assert all(high - low >= 64 for low, high in zip(addresses, addresses[1:], strict=False))


def test_a_run_takes_no_more_items_than_were_measured_to_pay():
    with batching(picks(), sizes=[1, 4, 8], run_ns=[10, 20, 30]) as (engine, blocker):
        futures = waiting(engine, blocker, [pick(i)[0] for i in range(20)])
        assert [future.result()[0].tolist() for future in futures] == [
            pick(i)[1].tolist() for i in range(20)
        ]
        assert engine.stats().by_batch == {4: 1, 8: 2}


def test_items_count_not_requests():
    with batching(picks()) as (engine, blocker):
        futures = waiting(engine, blocker, [pick(i, items=5)[0] for i in range(4)])
        for i, future in enumerate(futures):
            assert future.result()[0].tolist() == pick(i, items=5)[1].tolist()
        assert engine.stats().by_batch == {1: 1, 3: 1}


def test_an_item_that_is_larger_than_those_that_were_measured_counts_for_several():
    with batching(picks(), item_size=4) as (engine, blocker):  # three of x, and an index
        for width, most in ((2, 16), (3, 16), (7, 8), (20, 2), (50, 1)):
            before = engine.stats().by_batch
            futures = waiting(engine, blocker, [pick(i, width=width)[0] for i in range(32)])
            for i, future in enumerate(futures):
                assert future.result()[0].tolist() == pick(i, width=width)[1].tolist()
            runs = Counter(engine.stats().by_batch) - Counter(before)
            assert max(runs) == most
        for width, most in ((7, 8), (50, 1)):
            before = engine.stats().by_batch
            items = [pick(i, width=width) for i in range(500)]
            found = engine.map([inputs for inputs, _ in items], in_flight=100)
            for (_, expected), (y,) in zip(items, found, strict=True):
                assert y.tolist() == expected.tolist()
            assert max(Counter(engine.stats().by_batch) - Counter(before)) <= most


def test_only_the_same_shapes_run_together_and_nobody_is_overtaken():
    with batching(picks()) as (engine, blocker):
        widths = [3, 3, 4, 3, 3, 3, 4]
        requests = [pick(i, width=width)[0] for i, width in enumerate(widths)]
        with engine._context.trace() as trace:
            futures = waiting(engine, blocker, requests)
            for future in futures:
                future.result()
        records = [record for record in trace if record.num_together]
        assert [record.num_together for record in records][1:] == [2, 2, 1, 3, 3, 3, 1]
        started = [record.started_ns for record in records]
        assert started == sorted(started)


def test_an_urgent_request_is_not_kept_waiting_for_others_to_join():
    with batching(picks()) as (engine, blocker):
        long = run_until_busy(blocker)
        with engine._context.trace() as trace:
            normal = [engine.submit(pick(i)[0]) for i in range(3)]
            urgent = [engine.submit(pick(i)[0], priority=1) for i in range(2)]
            background = [engine.submit(pick(i)[0], priority=-1) for i in range(3)]
            long.cancel()
            for future in normal + urgent + background:
                future.result()
        order = sorted((record.started_ns, record.num_together) for record in trace)
        assert [together for _, together in order][1:] == [2, 2, 3, 3, 3, 3, 3, 3]


def test_a_batch_does_not_make_its_members_late():
    """Runs of more than one item are believed to take a minute: with less time left, none is."""
    with batching(picks(), sizes=[1, 2], run_ns=[1000, 60 * 10**9]) as (engine, blocker):
        futures = waiting(engine, blocker, [pick(i)[0] for i in range(4)], timeout=30)
        for i, future in enumerate(futures):
            assert future.result()[0].tolist() == pick(i)[1].tolist()
        assert engine.stats().by_batch == {1: 4}
        for future in waiting(engine, blocker, [pick(i)[0] for i in range(6)]):
            future.result()
        assert max(engine.stats().by_batch) == 2


def test_each_caller_gets_its_own_error():
    with batching(picks()) as (engine, blocker):
        requests = [pick(i)[0] for i in range(6)]
        requests[2] = [requests[2][0], np.array([[7]], np.int64)]
        futures = waiting(engine, blocker, requests)
        for i, future in enumerate(futures):
            if i == 2:
                with pytest.raises(InferenceError, match="GatherElements"):
                    future.result()
            else:
                assert future.result()[0].tolist() == pick(i)[1].tolist()
        stats = engine.stats()
        assert (stats.done, stats.failed) == (5, 1)
        assert stats.by_batch == {1: 6}
        assert engine._model.batching_failure is None


def test_what_was_cancelled_or_has_expired_is_left_out():
    with batching(picks()) as (engine, blocker):
        long = run_until_busy(blocker)
        futures = [engine.submit(pick(i)[0], timeout=0.01 if i == 3 else None) for i in range(6)]
        futures[1].cancel()
        with pytest.raises(DeadlineExceeded):
            futures[3].result()
        long.cancel()
        for i in (0, 2, 4, 5):
            assert futures[i].result()[0].tolist() == pick(i)[1].tolist()
        stats = engine.stats()
        assert (stats.done, stats.cancelled, stats.expired) == (4, 1, 1)
        assert stats.by_batch == {4: 1}


def paces(i, steps):
    return [np.array([[steps]], np.int64), np.full((1, 64), i, np.float32)]


def run_together_until_busy(engine, blocker, requests, **options):
    futures = waiting(engine, blocker, requests, **options)
    while not all(future.running() for future in futures):
        threading.Event().wait(0.001)
    return futures


def test_a_member_that_is_cancelled_leaves_and_the_others_get_their_answers():
    with batching(paced()) as (engine, blocker):
        futures = run_together_until_busy(
            engine, blocker, [paces(i, 300_000 * (i == 1)) for i in range(3)]
        )
        futures[1].cancel()
        with pytest.raises(CancelledError):
            futures[1].result()
        for i in (0, 2):
            assert futures[i].result()[0].tolist() == [[i] * 64]
        stats = engine.stats()
        assert (stats.done, stats.cancelled) == (2, 1)
        assert stats.by_batch == {3: 1}


def test_a_member_that_expires_leaves_and_the_others_get_their_answers():
    with batching(paced()) as (engine, blocker):
        long = run_until_busy(blocker)
        ends = []

        def call(i):
            try:
                ends.append(engine.run(paces(i, 500_000), timeout=0.2 if i == 1 else None)[0][0, 0])
            except DeadlineExceeded:
                ends.append("late")

        def release(i):
            while engine._context.stats().queue_depth < 3:
                threading.Event().wait(0.001)
            long.cancel()

        in_threads(4, lambda i: release(i) if i == 3 else call(i))
        assert ends[0] == "late"
        assert sorted(ends[1:]) == [0, 2]
        assert engine.stats().by_batch == {3: 1}


def test_a_run_that_nobody_waits_for_any_more_is_stopped():
    """It would take minutes."""
    with batching(paced()) as (engine, blocker):
        futures = run_together_until_busy(engine, blocker, [paces(i, 10**9) for i in range(3)])
        for future in futures:
            future.cancel()
        assert engine.run(paces(7, 1))[0].tolist() == [[7] * 64]
        assert engine.stats().cancelled == 3


def test_a_run_all_of_whose_members_expire_is_stopped():
    with batching(paced()) as (engine, blocker):
        futures = waiting(engine, blocker, [paces(i, 10**9) for i in range(3)], timeout=0.3)
        for future in futures:
            with pytest.raises(DeadlineExceeded):
                future.result()
        assert engine.run(paces(7, 1))[0].tolist() == [[7] * 64]


def test_outputs_without_an_item_for_each_input_turn_it_off():
    with batching(first_only()) as (engine, blocker):
        for _ in range(2):
            requests = [[np.full((1, 4), i, np.float32)] for i in range(4)]
            for i, future in enumerate(waiting(engine, blocker, requests)):
                assert future.result()[0].tolist() == [[i] * 4]
        assert engine.stats().by_batch == {1: 8}
        assert "did not have an item for each" in engine._model.batching_failure


def test_batches_that_fail_where_their_requests_do_not_turn_it_off():
    with batching(only_one()) as (engine, blocker):
        for _ in range(4):
            requests = [[np.full((1, 4), i, np.float32)] for i in range(4)]
            for i, future in enumerate(waiting(engine, blocker, requests)):
                assert future.result()[0].tolist() == [[i] * 4]
        assert engine.stats().failed == 0
        assert "by themselves did not" in engine._model.batching_failure


def test_what_waits_is_divided_among_the_streams_that_serve_it():
    """One of two streams runs a request of the model meanwhile: it is to have its part of the eight
    that wait when the other one frees."""
    with batching(paced(), num_streams=2) as (engine, blocker):
        other = run_together_until_busy(engine, blocker, [paces(9, 10**9)])
        futures = waiting(engine, blocker, [paces(i, 2000) for i in range(8)])
        for i, future in enumerate(futures):
            assert future.result()[0].tolist() == [[i] * 64]
        assert engine.stats().by_batch == {1: 1, 2: 1, 5: 1}  # of 9, of 4, of 2
        other[0].cancel()


def test_a_request_that_gives_memory_back_runs_by_itself():
    with batching(picks()) as (engine, blocker):
        requests = [pick(i)[0] for i in range(3)]
        for future in waiting(engine, blocker, requests, shrink_memory=True):
            future.result()
        assert engine.stats().by_batch == {1: 3}


def test_what_does_not_fit_is_refused():
    with unpinned(1) as context:
        engine = Engine(picks(), None, context=context, batching="off")
        with pytest.raises(ValueError, match="ascending sizes"):
            let_run_together(engine, sizes=[2, 4], run_ns=[1, 1])
        let_run_together(engine)
        with pytest.raises(ValueError, match="already"):
            let_run_together(engine)
        fixed = Engine(models.identity((4,)), None, context=context)
        with pytest.raises(ValueError, match="open first dimension"):
            let_run_together(fixed)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),  # items
            st.integers(2, 3),  # their width
            st.sampled_from([-1, 0, 0, 0, 1]),  # priority
            st.sampled_from(["", "", "", "fails", "cancelled"]),
        ),
        max_size=30,
    ),
    st.sampled_from([[1, 2], [1, 7], SIZES]),
)
def test_any_mix_gives_each_its_answer(requests, sizes):
    with batching(picks(), sizes=sizes, run_ns=HALVED[: len(sizes)]) as (engine, blocker):
        long = run_until_busy(blocker)
        futures = []
        for i, (items, width, priority, what) in enumerate(requests):
            inputs, _ = pick(i, items, width)
            if what == "fails":
                inputs = [inputs[0], inputs[1] + 10]
            futures.append(engine.submit(inputs, priority=priority))
            if what == "cancelled":
                futures[-1].cancel()
        long.cancel()
        for i, ((items, width, _, what), future) in enumerate(zip(requests, futures, strict=True)):
            if what == "fails":
                with pytest.raises(InferenceError):
                    future.result()
            elif what == "cancelled":
                with pytest.raises(CancelledError):
                    future.result()
            else:
                assert future.result()[0].tolist() == pick(i, items, width)[1].tolist()
        ends = [what for _, _, _, what in requests]
        stats = engine.stats()
        assert stats.failed == ends.count("fails")
        assert stats.cancelled == ends.count("cancelled")
        assert stats.done == ends.count("")
        assert sum(size * count for size, count in stats.by_batch.items()) == (
            stats.done + stats.failed
        )
        while engine._context.stats().queue_depth:  # what was cancelled is popped last
            threading.Event().wait(0.001)


@pytest.mark.parametrize(
    ("num_streams", "scheduler"), [(1, "multi_stream"), (3, "multi_stream"), (4, "elastic")]
)
def test_a_crowd_of_every_kind(num_streams, scheduler):
    """Threads, futures, loops and maps, over two models and several shapes; failures, timeouts,
    cancels, priorities and a close. Every request ends once, every answer is its caller's own."""
    ends = {"done": 0, "failed": 0, "expired": 0, "cancelled": 0, "closed": 0}
    lock = threading.Lock()

    def settle(get, expected):
        try:
            (y,) = get()
            assert y.tolist() == expected.tolist()
            end = "done"
        except InferenceError:
            assert expected is None
            end = "failed"
        except DeadlineExceeded:
            end = "expired"
        except (CancelledError, asyncio.CancelledError):
            end = "cancelled"
        except ClosedError:
            end = "closed"
        with lock:
            ends[end] += 1

    def request(rng):
        items, width = rng.choice([1, 1, 1, 2, 3]), rng.choice([3, 4])
        inputs, expected = pick(rng.randrange(10_000), items, width)
        if rng.random() < 0.05:
            return [inputs[0], inputs[1] + 10], None
        return inputs, expected

    def options(rng):
        return {
            "timeout": rng.choice([None, None, None, 1e-4, 1e-3, 60]),
            "priority": rng.choice([-1, 0, 0, 0, 1]),
        }

    def by_run(engine, rng):
        for _ in range(300):
            inputs, expected = request(rng)
            settle(lambda inputs=inputs: engine.run(inputs, **options(rng)), expected)

    def by_future(engine, rng):
        for _ in range(60):
            sent = []
            for _ in range(10):
                inputs, expected = request(rng)
                try:
                    sent.append((engine.submit(inputs, **options(rng)), expected))
                except (DeadlineExceeded, ClosedError) as error:
                    settle(lambda error=error: (_ for _ in ()).throw(error), expected)
            for future, expected in sent:
                if rng.random() < 0.1:
                    future.cancel()
                settle(lambda future=future: future.result(60), expected)

    def by_loop(engine, rng):
        async def one():
            inputs, expected = request(rng)
            task = asyncio.ensure_future(engine.run_async(inputs, **options(rng)))
            if rng.random() < 0.1:
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            settle(task.result, expected)

        async def main():
            for _ in range(15):
                await asyncio.gather(*(one() for _ in range(40)))

        asyncio.run(main())

    def by_map(engine, rng):
        for _ in range(15):
            items = [request(rng) for _ in range(40)]
            results = engine.map([inputs for inputs, _ in items], priority=rng.choice([-1, 0, 1]))
            for _, expected in items:
                settle(lambda results=results: next(results), expected)
                if expected is None:
                    break

    with unpinned(num_streams, scheduler, queue_capacity=64) as context:
        engine = Engine(picks(), None, context=context, batching="off")
        doomed = Engine(picks(), None, context=context, batching="off")
        for one in (engine, doomed):
            let_run_together(one)
            if scheduler == "elastic":  # as if the model scaled well
                widths = [high - low for low, high in context._layout.tree.leaves]
                one._model.set_run_ns([60_000 // width for width in widths])
        work = [by_run, by_run, by_run, by_future, by_loop, by_map]

        def body(i):
            if i == 2 * len(work):
                for _ in range(300):
                    doomed.run(pick(i)[0], priority=1)
                doomed.close()
            else:
                work[i % len(work)](doomed if i == 1 or i == 4 else engine, random.Random(i))

        in_threads(2 * len(work) + 1, body)
        while context.stats().queue_depth:  # what was withdrawn last is popped soon
            threading.Event().wait(0.001)
        stats = context.stats()
        assert ends["done"] > 0
        assert sum(size * count for size, count in stats.by_batch.items() if size > 1) > 0
        assert engine._model.batching_failure is None
        while context._shared.dispatcher.num_busy:
            threading.Event().wait(0.001)
        assert engine.run(pick(5)[0])[0].tolist() == pick(5)[1].tolist()


# --- From one thread ----------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("items", [1, 3])
def test_a_map_runs_its_items_together(ordered, items):
    with batching(picks(), num_streams=2) as (engine, _):
        expected = [pick(i, items)[1].tolist() for i in range(1000)]
        for times in range(1, 21):  # a worker may keep up, so that nothing waits
            results = engine.map((pick(i, items)[0] for i in range(1000)), ordered=ordered)
            found = [y.tolist() for (y,) in results]
            assert (found if ordered else sorted(found)) == (
                expected if ordered else sorted(expected)
            )
            stats = engine.stats()
            assert stats.done == 1000 * times
            assert sum(size * count for size, count in stats.by_batch.items()) == 1000 * times
            if max(stats.by_batch) > 1:
                break
        assert 1 < max(stats.by_batch) <= 16 // items


def test_a_map_raises_an_error_in_its_items_place():
    with batching(picks()) as (engine, _):
        items = [pick(i)[0] for i in range(200)]
        items[117] = [items[117][0], np.array([[9]], np.int64)]
        results = engine.map(items)
        for i in range(117):
            assert next(results)[0].tolist() == pick(i)[1].tolist()
        with pytest.raises(InferenceError):
            next(results)
        assert engine.stats().failed == 1


def test_an_iterable_may_fill_one_list_anew_for_each_item():
    def items(inputs):
        for i in range(300):
            inputs[:] = pick(i)[0]
            yield inputs

    with batching(picks()) as (engine, blocker):
        long = run_until_busy(blocker)  # so that the first ones wait, and run together
        results = engine.map(items([]), in_flight=100)
        threading.Timer(0.05, long.cancel).start()
        for i, (y,) in enumerate(results):
            assert y.tolist() == pick(i)[1].tolist()
        assert max(engine.stats().by_batch) > 1


def test_a_map_of_unlike_items_gives_each_its_answer():
    rng = random.Random(1)
    shapes = [(rng.choice([1, 1, 1, 2, 40]), rng.choice([3, 3, 4])) for _ in range(300)]
    with batching(picks(), num_streams=2) as (engine, _):
        requests = [pick(i, *shape) for i, shape in enumerate(shapes)]
        items = [
            inputs if i % 7 else [np.asfortranarray(inputs[0]), inputs[1]]  # to be converted
            for i, (inputs, _) in enumerate(requests)
        ]
        for (_, expected), (y,) in zip(requests, engine.map(items), strict=True):
            assert y.tolist() == expected.tolist()
        assert engine.stats().done == 300


def test_a_map_that_is_closed_early_ends_what_is_under_way():
    with batching(picks()) as (engine, blocker):
        long = run_until_busy(blocker)
        results = engine.map((pick(i)[0] for i in range(100)), in_flight=100)
        threading.Timer(0.05, long.cancel).start()
        assert next(results)[0].tolist() == pick(0)[1].tolist()
        results.close()
        assert engine.run(pick(1)[0])[0].tolist() == pick(1)[1].tolist()
        while engine._context.stats().queue_depth:
            threading.Event().wait(0.001)
        stats = engine.stats()
        assert stats.done + stats.cancelled == 101


def test_a_map_goes_on_by_single_runs_where_batches_fail():
    with batching(only_one()) as (engine, _):
        items = [[np.full((1, 4), i, np.float32)] for i in range(300)]
        for times in range(1, 31):  # a worker may keep up, so that few wait and run together
            for i, (y,) in enumerate(engine.map(items)):
                assert y.tolist() == [[i] * 4]
            assert (engine.stats().done, engine.stats().failed) == (300 * times, 0)
            if engine._model.batching_failure:
                break
        assert "by themselves did not" in engine._model.batching_failure


def test_a_large_batch_is_split_into_items_that_run_together():
    with batching(picks(), num_streams=2) as (engine, _):
        inputs, expected = pick(3, items=500)
        assert engine.batched_run(inputs)[0].tolist() == expected.tolist()
