"""The numbers from inside: histograms, outcomes, and that they add up."""

from __future__ import annotations

import builtins
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import Context, Engine, Topology, compile_model
from deepsched.errors import InferenceError
from deepsched.runtime.histogram import RELATIVE_WIDTH, bucket_bounds, bucket_index
from deepsched.scheduling.stats import Counts
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.threads import in_threads

BOUNDS = bucket_bounds()


@given(st.integers(0, 2**42 - 1))
def test_a_value_lies_within_its_bucket_which_is_narrow(value):
    low, high = BOUNDS[bucket_index(value)]
    assert low <= value < high
    assert high - low <= max(1, low * RELATIVE_WIDTH)


def test_buckets_leave_no_gap_and_the_last_is_open():
    assert [high for _, high in BOUNDS[:-1]] == [low for low, _ in BOUNDS[1:]]
    assert bucket_index(2**63) == len(BOUNDS) - 1


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_values(values):
    buckets = np.zeros(len(BOUNDS), np.uint64)
    for value in values:
        buckets[bucket_index(value)] += 1
    snapshot = (buckets.tobytes(), sum(values), max(values))
    empty = (np.zeros(len(BOUNDS), np.uint64).tobytes(), 0, 0)
    counts = Counts(1)
    counts.add(([(len(values), 0, 0, 0, 0, empty, snapshot, sum(values), ())], (0, 0, 0)))
    running = counts.summary(1.0, 0, 0, 1).running
    assert running.count == len(values)
    assert running.mean == pytest.approx(np.mean(values) / 1e9)
    assert running.max == max(values) / 1e9
    for quantile, got in ((0.5, running.p50), (0.9, running.p90), (0.99, running.p99)):
        exact = np.quantile(values, quantile, method="inverted_cdf") / 1e9
        assert got == pytest.approx(exact, rel=RELATIVE_WIDTH)


def test_every_request_is_counted_once_by_how_it_ended():
    x = np.arange(8, dtype=np.float32)
    with unpinned(2) as context:
        engine = Engine(models.gather(), None, context=context)
        other = Engine(models.mlp(), None, context=context)

        def work(i):
            for n in range(100):
                if n % 4:
                    engine.run([x, np.array([n % 8], np.int64)])
                else:
                    with pytest.raises(InferenceError):
                        engine.run([x, np.array([8], np.int64)])

        in_threads(4, work)
        other.run([np.zeros((1, 64), np.float32)])
        stats = engine.stats()
        assert (stats.done, stats.failed) == (300, 100)
        assert stats.expired == stats.cancelled == stats.rejected == 0
        assert stats.inline + stats.by_worker == 400
        assert stats.running.count == stats.waiting.count == 400
        assert sum(stream.done + stream.failed for stream in stats.streams) == 400
        assert stats.queue_depth == 0
        assert stats.queue_capacity == 1024
        assert 0 < stats.busy_fraction <= 1
        assert 0 < stats.running.p50 <= stats.running.p99 <= stats.running.max
        engine.close()
        assert context.stats().done == 301
        assert context.stats().failed == 100


def test_waiting_time_and_depth_show_a_queue():
    steps, square = np.array(2000, np.int64), np.zeros((64, 64), np.float32)
    with Context(scheduler="single_stream") as context:
        engine = Engine(models.spin(), None, context=context)
        futures = [engine.submit([steps, square]) for _ in range(8)]
        for future in futures:
            future.result()
        stats = engine.stats()
    assert stats.queue_depth_max >= 6
    assert stats.waiting.max > 4 * stats.running.p50
    assert stats.by_worker == 8


def test_stats_and_memory_are_readable_as_text():
    with unpinned(2) as context:
        engine = Engine(models.gather(), None, context=context)
        for _ in range(3):
            engine.run([np.ones(4, np.float32), np.array([0], np.int64)])
        with pytest.raises(InferenceError):
            engine.run([np.ones(4, np.float32), np.array([9], np.int64)])
        lines = str(engine.stats()).splitlines()
        assert lines[0].startswith("3 done, 1 failed in ")
        assert lines[2].startswith("waiting: p50 ")
        assert "0: " in lines[-1] and "1: " in lines[-1]
        assert "activations" in str(engine.memory())


@pytest.mark.parametrize("missing", ["smaps_rollup", "smaps"])
def test_memory_is_told_where_the_kernel_lacks_maps(monkeypatch, missing):
    plain = open

    def without(path, *args, **options):
        if str(path).startswith(f"/proc/self/{missing}"):
            raise FileNotFoundError(2, os.strerror(2), path)
        return plain(path, *args, **options)

    with compile_model(models.mlp()) as engine:
        engine.run(engine.generate_random_inputs())
        usual = engine.memory()
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", without)
        memory = engine.memory()
        monkeypatch.undo()
    assert memory.activations == usual.activations
    # PSS is less than RSS by what is shared with other processes.
    assert usual.process / 2 < memory.process < usual.process * 4
    if missing == "smaps_rollup":
        assert memory.weights_shared == usual.weights_shared


def test_memory_of_the_process_is_the_kernels_sum():
    with compile_model(models.mlp()) as engine:
        ours = engine.memory().process
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        pytest.skip("the kernel has no smaps_rollup")
    theirs = int(re.search(r"^Pss: +(\d+) kB", rollup.read_text(), re.M)[1]) * 1024
    assert ours == pytest.approx(theirs, rel=0.25)


def test_one_stream_on_many_cores_warns(caplog):
    machine = Topology.synthetic(packages=1, cores_per_l3=4)
    with Context(topology=machine, pin="none") as context:
        assert context.num_streams == 1
    assert "num_streams=2 to 4 makes more streams" in caplog.text
    caplog.clear()
    for options in ({"num_streams": 1}, {"num_cores": 1}, {"scheduler": "single_stream"}):
        Context(topology=machine, pin="none", **options).close()
    assert not caplog.text
