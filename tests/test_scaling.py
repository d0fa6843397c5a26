"""Which numbers of cores to look at, and which of them help."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import Engine, Topology, partition
from deepsched.machine.contention import read_cpu_times
from deepsched.models.cache import Cache
from deepsched.models.measurements import Measurements
from deepsched.scheduling.group_tree import tree_of
from deepsched.scheduling.scaling import run_lengths, useful_cores, widths
from tests.support.models import gemm
from tests.support.neighbours import busy_neighbours

OTHERS_SHARE = "deepsched.machine.contention.ContentionMonitor.others_share"


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100), min_size=1))
def test_useful_cores_are_the_fewest_near_the_fastest(scaling):
    enough = useful_cores(scaling)
    assert scaling[enough] <= min(scaling.values()) / 0.95
    assert all(scaling[c] > scaling[enough] for c in scaling if c < enough)


@given(st.integers(1, 10_000))
def test_widths_double_up_to_all_cores(most):
    found = widths(most)
    assert found[0] == 1
    assert found[-1] == most
    assert all(low < high <= 2 * low for low, high in zip(found, found[1:], strict=False))


# --- What is kept ---------------------------------------------------------------------------------


def kept(folder):
    return [item for item in Cache(folder).list() if item.kind != "model"]


def test_what_was_measured_beside_busy_processes_is_not_kept(tmp_path, monkeypatch):
    if read_cpu_times(Path("/"), os.sched_getaffinity(0)) is None:
        pytest.skip("this machine does not count busy time for each CPU")
    with busy_neighbours(), Engine(gemm(), None, scheduler="elastic", cache_dir=tmp_path):
        assert kept(tmp_path) == []
    monkeypatch.setattr(OTHERS_SHARE, lambda self: 0.04)  # they are gone, but who else is here?
    with Engine(gemm(), None, scheduler="elastic", cache_dir=tmp_path) as engine:
        assert engine.compiled.was_cached
    (item,) = kept(tmp_path)
    assert item.kind == "run lengths" and item.others_share >= 0.04


def measure_once(folder, measure=lambda group, seconds: 100 - group):
    """Run lengths of an imaginary model on two cores."""
    tree = tree_of(partition(Topology.synthetic(1, 1, 1, 2), num_streams=2).streams)
    return run_lengths(tree, measure, Measurements(Cache(folder), "m", "m", 1), "layout", None)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_what_was_measured_while_this_process_did_other_work_is_not_kept(tmp_path):
    """Models that are loaded side by side: one is compiled while another is measured."""

    def spin(group, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            hashlib.sha256(data)
        return 100 - group

    def work():
        while not is_over.is_set():
            hashlib.sha256(data)

    data, is_over = bytes(10**6), threading.Event()  # hashed without the GIL
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert measure_once(tmp_path, spin) == [100, 100, 98]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert kept(tmp_path) == []


@pytest.mark.parametrize(("share", "is_kept"), [(0.09, True), (0.1, False), (None, True)])
def test_what_is_kept_says_how_busy_others_were(tmp_path, monkeypatch, share, is_kept):
    monkeypatch.setattr(OTHERS_SHARE, lambda self: share)
    assert measure_once(tmp_path) == [100, 100, 98]
    assert [item.others_share for item in kept(tmp_path)] == [share] * is_kept
    if is_kept:
        assert measure_once(tmp_path, None) == [100, 100, 98]  # None would have failed
    else:
        with pytest.raises(TypeError):
            measure_once(tmp_path, None)


def test_what_was_kept_without_looking_at_others_is_measured_again(tmp_path, monkeypatch):
    """By earlier versions."""
    monkeypatch.setattr(OTHERS_SHARE, lambda self: 0.0)
    write = Cache.remember_measurement

    def write_as_before(self, key, kind, model, batch_size, others_share, value):
        record = {"kind": kind, "model": model, "batch_size": batch_size, "value": value}
        self._measured.write(key, record)

    monkeypatch.setattr(Cache, "remember_measurement", write_as_before)
    measure_once(tmp_path)
    with pytest.raises(TypeError):
        measure_once(tmp_path, None)
    monkeypatch.setattr(Cache, "remember_measurement", write)
    measure_once(tmp_path)
    measure_once(tmp_path, None)


def test_what_was_kept_while_the_cores_were_far_apart_is_measured_again_when_near(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(OTHERS_SHARE, lambda self: 0.0)

    def open_at(trips_ns, measure):
        tree = tree_of(partition(Topology.synthetic(1, 1, 1, 2), num_streams=2).streams)
        kept_in = Measurements(Cache(tmp_path), "m", "m", 1)
        return run_lengths(tree, measure, kept_in, "layout", None, trips_ns)

    far = lambda group, seconds: 100  # noqa: E731
    near = lambda group, seconds: 100 - 40 * (group == 2)  # noqa: E731
    assert open_at((470.0,), far) == [100, 100, 100]
    assert open_at((480.0,), None) == [100, 100, 100]  # None would have failed
    assert open_at((float("nan"),), None) == [100, 100, 100]  # not known
    assert open_at((), None) == [100, 100, 100]
    assert open_at((110.0,), near) == [100, 100, 60]
    assert open_at((110.0,), None) == [100, 100, 60]
