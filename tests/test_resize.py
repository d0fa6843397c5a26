"""Contexts that move to other cores while requests run: none is lost, none fails."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deepsched import Context, Engine, Topology, errors
from tests.support import models
from tests.support.contexts import two_sessions, unpinned

X = np.ones((1, 64), np.float32)
SQUARE = np.ones((64, 64), np.float32)

needs_two_cores = pytest.mark.skipif(len(Topology.detect().cores) < 2, reason="needs two cores")


class Load:
    """Requests by every way in, without a pause, each of whose answers is looked at."""

    def __init__(self, engine, inputs, expected):
        self._engine, self._inputs = engine, inputs
        self._expected = expected.tobytes()
        self._end = threading.Event()
        self.failures = []
        self.counts = [0] * 5
        ways = (self._run, self._submit, self._run_async, self._map, self._cancel)
        self._threads = [
            threading.Thread(target=self._serve, args=(index, way))
            for index, way in enumerate(ways)
        ]

    def _check(self, outputs):
        if outputs[0].tobytes() != self._expected:
            self.failures.append("another answer")

    def _run(self):
        self._check(self._engine.run(self._inputs, timeout=60))

    def _submit(self):
        futures = [self._engine.submit(self._inputs) for _ in range(8)]
        for future in futures:
            self._check(future.result(60))

    def _run_async(self):
        async def several():
            return await asyncio.gather(*(self._engine.run_async(self._inputs) for _ in range(8)))

        for outputs in asyncio.run(several()):
            self._check(outputs)

    def _map(self):
        for outputs in self._engine.map([self._inputs] * 32):
            self._check(outputs)

    def _cancel(self):
        future = self._engine.submit(self._inputs)
        if not future.cancel():
            self._check(future.result(60))

    def _serve(self, index, way):
        while not self._end.is_set():
            try:
                way()
            except BaseException as error:
                self.failures.append(repr(error))
                return
            self.counts[index] += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        assert self.failures == []
        assert all(self.counts), self.counts


def _more(load):
    """Returns once each way in has answered again."""
    before = list(load.counts)
    end = time.monotonic() + 60
    while any(now == then for now, then in zip(load.counts, before, strict=True)):
        assert not load.failures and time.monotonic() < end, (load.failures, load.counts)
        time.sleep(0.001)


@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream", "elastic"])
def test_no_request_is_lost_or_fails_while_a_context_moves(mlp, scheduler):
    with unpinned(2, scheduler) as context, Engine(mlp, context=context) as engine:
        expected = engine.run([X])[0]
        with Load(engine, [X], expected) as load:
            # With elastic each move measures how the model scales.
            for num_cores in (1, 2) * (1 if scheduler == "elastic" else 5):
                context.resize(num_cores)
                assert context.num_cores == engine.num_cores == num_cores
                _more(load)
        stats = engine.stats()
        everything = context.stats()
    assert stats.failed == stats.expired == stats.rejected == 0
    assert stats.done + stats.cancelled == everything.done + everything.cancelled
    least = load.counts[0] + 8 * load.counts[1] + 8 * load.counts[2] + 32 * load.counts[3]
    assert stats.done > least


@needs_two_cores
@pytest.mark.field
@pytest.mark.timeout(600)
def test_a_hundred_moves_between_one_core_and_two_under_load(mlp):
    with Engine(mlp, num_cores=1, scheduler="multi_stream") as engine:
        expected = engine.run([X])[0]
        with Load(engine, [X], expected) as load:
            for num_cores in (2, 1) * 50:
                engine.context.resize(num_cores)
                _more(load)
        assert engine.stats().failed == 0
        assert len(os.listdir("/proc/self/task")) < 50  # no thread is left behind


def _nice_values(begin):
    """Of this process's threads whose names begin so."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            name, fields = (task / "comm").read_text(), (task / "stat").read_text()
        except OSError:  # it has ended
            continue
        if name.startswith(begin):
            found.add(int(fields.rpartition(")")[2].split()[16]))
    return found


def test_what_is_opened_beside_leaves_the_cpus_to_what_serves(mlp):
    """Opening and first runs are nicer than requests; threads that serve later are not."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with two_sessions() as context, Engine(mlp, context=context) as engine:
        done = threading.Event()

        def move():
            while not done.is_set():
                context.resize(num_streams=2)

        moving = threading.Thread(target=move)
        moving.start()
        end = time.monotonic() + 60
        while max(_nice_values("ds-aside"), default=own) <= own:
            assert time.monotonic() < end
        done.set()
        moving.join(60)
        engine.run([X])
        assert _nice_values("ds") == {own}


def test_an_elastic_context_that_goes_back_and_forth_measures_once(monkeypatch):
    measured = []

    def lengths(tree, *_):
        measured.append(tree.num_leaves)
        return [1000 * tree.num_cores(group) for group in range(len(tree.leaves))]

    monkeypatch.setattr("deepsched.scheduling.opening.run_lengths", lengths)
    with unpinned(2, "elastic") as context:
        engine = Engine(models.mlp(), context=context)
        for num_cores in (1, 2, 1, 2):
            context.resize(num_cores)
            assert engine._served.model.run_ns()[0] > 0
        assert measured == [2]  # one core is part of two
        engine.run([X])


def test_counts_of_all_placements_are_in_the_stats():
    with unpinned(2) as context:
        with Engine(models.mlp(), context=context) as engine:
            for number, num_cores in enumerate((1, 2, 1, 2), start=1):
                engine.run([X])
                context.resize(num_cores)
                assert engine.stats().done == context.stats().done == number
                assert engine.stats().running.count == number
                assert len(engine.stats().streams) == context.num_streams == num_cores
        other = Engine(models.mlp(), context=context)  # the counts of closed engines stay
        other.run([X])
        assert context.stats().done == 5 and other.stats().done == 1


def test_a_request_that_runs_ends_where_it_is_while_others_are_served_elsewhere():
    with unpinned(1) as context:
        engine = Engine(models.spin(), None, context=context)
        long = [np.int64(1 << 40), SQUARE]
        future = engine.submit(long)
        while not future.running():
            time.sleep(0.001)
        moving = threading.Thread(target=context.resize, args=(1,))
        moving.start()
        while context._shared.dispatcher is future._request.owner.dispatcher:
            time.sleep(0.001)
        assert (
            engine.run([np.int64(1), SQUARE], timeout=60) is not None
        )  # while the other still runs
        assert not future.done() and moving.is_alive()
        assert future.cancel()
        moving.join(60)
        assert not moving.is_alive()
        assert engine.stats().cancelled == 1 and engine.stats().done == 1


def test_requests_that_wait_for_room_go_along():
    with unpinned(1, queue_capacity=1) as context:
        engine = Engine(models.spin(), None, context=context)
        running = engine.submit([np.int64(1 << 40), SQUARE])
        while not running.running():
            time.sleep(0.001)
        waiting = engine.submit([np.int64(1), SQUARE])
        late = []
        blocked = threading.Thread(target=lambda: late.append(engine.run([np.int64(1), SQUARE])))
        blocked.start()
        moving = threading.Thread(target=context.resize, args=(1,))
        moving.start()
        blocked.join(0.05)
        running.cancel()
        moving.join(60)
        blocked.join(60)
        assert waiting.result(60) and late and not moving.is_alive()


def test_a_context_that_cannot_be_moved_serves_on(mlp):
    with unpinned(2) as context, Engine(mlp, context=context) as engine:
        placement = context._shared.placement
        with pytest.raises(errors.StreamConfigError, match="num_cores must be"):
            context.resize(3)
        with context.trace(), pytest.raises(errors.OptionError, match="is being traced"):
            context.resize(1)
        assert context._shared.placement is placement
        engine.run([X])
    with pytest.raises(errors.ClosedError):
        context.resize(1)


def test_a_model_that_has_changed_on_disk_is_not_taken_for_the_one_that_is_served(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    for cache_dir in (None, tmp_path / "cache"):
        path.write_bytes(models.mlp().SerializeToString())
        with unpinned(2) as context:
            engine = Engine(str(path), context=context, cache_dir=cache_dir)
            expected = engine.run([X])[0]
            path.write_bytes(models.mlp(layers=2).SerializeToString())
            if cache_dir is None:
                with pytest.raises(errors.ModelError, match="has been written to"):
                    context.resize(1)
            else:
                context.resize(1)
            assert np.array_equal(engine.run([X])[0], expected)


@pytest.mark.parametrize("fate", ["damaged", "removed"])
def test_a_context_moves_though_the_compiled_model_is_gone(mlp, tmp_path, fate, caplog):
    """Another process that finds an entry of the cache damaged removes it."""
    with unpinned(2) as context:
        engine = Engine(mlp, context=context, cache_dir=tmp_path / "cache")
        expected = engine.run([X])[0]
        folder = Path(engine.compiled.folder)
        for file in folder.iterdir():
            content = file.read_bytes()
            file.unlink()  # what is mapped stays
            if fate == "damaged":
                file.touch(0o600)
                file.write_bytes(content[: len(content) // 2])
        if fate == "removed":
            folder.rmdir()
        context.resize(1)
        assert np.array_equal(engine.run([X])[0], expected)
        assert "is compiled again" in caplog.text
        caplog.clear()
        context.resize(2)
        assert not caplog.text


def test_engines_that_are_made_and_closed_while_the_context_moves(mlp):
    end, failures = threading.Event(), []

    def make():
        while not end.is_set():
            try:
                with Engine(mlp, context=context) as engine:
                    engine.run([X])
            except BaseException as error:
                failures.append(repr(error))
                return

    with unpinned(2) as context:
        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        for num_cores in (1, 2) * 10:
            context.resize(num_cores)
        end.set()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert context.stats().failed == 0


def test_closing_while_it_moves_ends_everything(mlp):
    for _ in range(10):
        with unpinned(2) as context, Engine(mlp, context=context) as engine:
            engine.run([X])

            def move(context=context):
                try:
                    while True:
                        context.resize(1)
                        context.resize(2)
                except errors.ClosedError:
                    pass

            moving = threading.Thread(target=move)
            moving.start()
            engine.run([X])
            context.close()
            moving.join(60)
            assert not moving.is_alive()
            with pytest.raises(errors.ClosedError):
                engine.run([X])


def test_the_same_bits_after_a_move_where_that_was_asked_for():
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    machine = Topology.synthetic(packages=1, cores_per_l3=4)
    with Context(topology=machine, num_streams=2, pin="none") as context:
        engine = Engine(models.gemm(), 4, context=context, deterministic=True)
        expected = engine.run([x])[0].tobytes()
        for num_cores in (2, 3, 1, 4):
            context.resize(num_cores)
            assert engine.run([x])[0].tobytes() == expected


@needs_two_cores
def test_a_lease_grows_and_shrinks_with_its_context(mlp):
    with Engine(mlp, cores="lease", num_cores=1) as engine:
        context = engine.context
        first = context.lease
        context.resize(2)
        assert len(context.lease.cores) == 2 and first.is_closed
        assert set(first.cpus) <= set(context.lease.cpus)
        second = context.lease
        context.resize(1)
        assert second.is_closed and set(context.lease.cpus) < set(second.cpus)
        with pytest.raises(errors.StreamConfigError):
            context.resize(10**6)
        engine.run([X])
