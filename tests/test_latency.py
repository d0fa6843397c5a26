"""Groups of cores from round trips, in a simulator of pairs and on this machine."""

from __future__ import annotations

import math
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched import Topology, latency_matrix
from deepsched.errors import ThreadError, TopologyError
from deepsched.machine import probe
from deepsched.machine.latency import (
    is_change,
    measure_matrix,
    same_core_groups,
    sharing_groups,
)
from deepsched.machine.measured import measure_machine
from deepsched.machine.topology import Core
from tests.support.pairs import MEMORY_NS, SimulatedPairs


def measured_groups(pairs: SimulatedPairs, together=(), seconds=10.0):
    matrix = measure_matrix(
        len(pairs.labels), pairs.round_trip, MEMORY_NS, together, seconds, pairs.clock
    )
    return sharing_groups(matrix, MEMORY_NS, together)


LABELS = st.lists(st.integers(1, 8), min_size=1, max_size=6).flatmap(
    lambda sizes: st.permutations([label for label, size in enumerate(sizes) for _ in range(size)])
)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 2**32), near=st.floats(40, 120), step=st.floats(2.2, 5))
def test_groups_are_found_whatever_the_order_of_the_cores(labels, seed, near, step):
    # Far is not within a memory access; else two cores alone could not tell.
    far = max(near * step, 2 * MEMORY_NS)
    pairs = SimulatedPairs(labels, near=near, far=far, farther=2.5 * far, seed=seed)
    assert measured_groups(pairs) == pairs.groups


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(3, 8), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_disturbed_figures_part_no_group(sizes, seed):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    pairs = SimulatedPairs(labels, disturbed=0.05, seed=seed)
    assert measured_groups(pairs) == pairs.groups


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("num_groups", "size"), [(24, 8), (1, 192), (192, 1), (2, 96)], ids=lambda it: str(it)
)
def test_192_cores_take_less_than_ten_seconds(num_groups, size, interleaved):
    labels = [label for label in range(num_groups) for _ in range(size)]
    if interleaved:
        random.Random(0).shuffle(labels)
    pairs = SimulatedPairs(labels, labels_per_socket=max(1, num_groups // 2))
    assert measured_groups(pairs, seconds=5.0) == pairs.groups
    assert pairs.clock() < 10


def test_neighbours_that_share_caches_need_few_pairs():
    pairs = SimulatedPairs([core // 8 for core in range(192)])
    # 191 neighbours, 23 gaps twice more, 276 pairs of groups.
    assert measured_groups(pairs, seconds=0.6) == pairs.groups


def test_no_pair_is_begun_once_the_time_is_over():
    pairs = SimulatedPairs([core // 8 for core in range(64)])
    measured_groups(pairs, seconds=0.1)
    assert pairs.num_measured <= 101


def test_small_machines_have_every_pair_measured():
    pairs = SimulatedPairs([0, 0, 1, 1])
    matrix = measure_matrix(4, pairs.round_trip, MEMORY_NS)
    assert np.isnan(matrix).sum() == 4  # the diagonal
    assert np.array_equal(matrix, matrix.T, equal_nan=True)


def test_cores_that_share_an_l2_are_no_level_of_their_own():
    l2 = [frozenset({0, 1}), frozenset({2, 3})]

    def round_trip(a, b):
        return 45.0 if {a, b} in l2 else 100.0

    matrix = measure_matrix(4, round_trip, MEMORY_NS, l2)
    assert sharing_groups(matrix, MEMORY_NS) == [[0, 1], [2, 3]]
    assert sharing_groups(matrix, MEMORY_NS, l2) == [[0, 1, 2, 3]]


def test_figures_that_are_all_alike_are_told_by_memory():
    alike = np.full((3, 3), 200.0)
    assert sharing_groups(alike, memory_ns=120.0) == [[0, 1, 2]]
    assert sharing_groups(alike, memory_ns=80.0) == [[0], [1], [2]]


def test_a_mesh_without_a_gap_is_one_group():
    def round_trip(a, b):
        return 80.0 + 6 * (abs(a // 4 - b // 4) + abs(a % 4 - b % 4))  # 16 tiles, 4 by 4

    matrix = measure_matrix(16, round_trip, MEMORY_NS)
    assert sharing_groups(matrix, MEMORY_NS) == [list(range(16))]


def test_hardware_threads_of_one_core_are_told_from_cores():
    def round_trip(a, b):
        return 20.0 if a // 2 == b // 2 else 100.0

    matrix = measure_matrix(6, round_trip, MEMORY_NS)
    assert same_core_groups(matrix, MEMORY_NS) == [[0, 1], [2, 3], [4, 5]]
    assert sharing_groups(matrix, MEMORY_NS) == [[0, 1, 2, 3, 4, 5]]


def test_a_core_that_was_never_free_is_in_no_group_with_others():
    def round_trip(a, b):
        return None if 1 in (a, b) else 100.0

    matrix = measure_matrix(3, round_trip, MEMORY_NS)
    assert np.isnan(matrix[1]).all()
    assert sharing_groups(matrix, MEMORY_NS) == [[0, 2], [1]]


def test_a_pair_that_was_not_measured_is_no_change():
    look = np.array([[math.nan, 100.0], [100.0, math.nan]])
    assert not is_change(look, np.full((2, 2), math.nan))


# --- Topology.detect(measure=True), with what the cores say made up ----------------------------


@pytest.fixture
def cores_say(monkeypatch):
    """Makes `cores_say(round_trip)`: from then on looks find these, by OS numbers."""

    def say(round_trip):
        monkeypatch.setattr(probe, "round_trip_ns", round_trip)
        monkeypatch.setattr(probe, "memory_latency_ns", lambda cpu: MEMORY_NS)

    return say


needs_two_cores = pytest.mark.skipif(
    len(Topology.detect().cores) < 2, reason="one core has no other"
)


@needs_two_cores
def test_cores_that_are_far_apart_share_no_l3(cores_say):
    cores_say(lambda a, b: 470)
    cores = Topology.detect(measure=True).cores
    assert len({core.l3 for core in cores}) == len(cores) == len(Topology.detect().cores)


@needs_two_cores
def test_cores_that_are_near_share_one(cores_say):
    cores_say(lambda a, b: 110)
    assert len({core.l3 for core in Topology.detect(measure=True).cores}) == 1


@needs_two_cores
def test_hidden_hardware_threads_become_one_core(cores_say):
    cores_say(lambda a, b: 20)
    topology = Topology.detect(measure=True)
    assert [core.cpus for core in topology.cores] == [Topology.detect().cpus]


def refused(a, b):
    raise ThreadError(1, "Operation not permitted")


@needs_two_cores
@pytest.mark.parametrize("trip", [lambda a, b: None, refused], ids=["busy", "refused"])
def test_without_figures_the_kernels_word_holds(cores_say, trip):
    cores_say(trip)
    assert Topology.detect(measure=True) == Topology.detect()


def test_a_system_that_lets_no_thread_be_pinned_says_so(monkeypatch):
    def refuse(cpu):
        raise ThreadError(1, "Operation not permitted")

    monkeypatch.setattr(probe, "memory_latency_ns", refuse)
    look = probe.look([0, 1])
    assert "not permitted" in look.refused
    assert look.sharing == look.same_core == ()


# --- This machine -----------------------------------------------------------------------------


def test_this_machine_has_a_matrix_in_the_order_of_its_cores():
    topology = Topology.detect()
    matrix = latency_matrix(topology)
    assert matrix.shape == (len(topology.cores),) * 2
    assert np.isnan(np.diag(matrix)).all()
    assert (matrix[~np.isnan(matrix)] > 0).all()


def test_one_core_is_measured_without_a_failure():
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        measured = measure_machine(Topology.detect())
    finally:
        os.sched_setaffinity(0, affinity)
    assert measured.look.sharing == ((0,),)
    assert measured.findings == ()
    assert measured.core_bandwidth is not None
    assert measured.core_bandwidth > 1e6


@pytest.mark.parametrize("measure", [latency_matrix, measure_machine])
def test_other_machines_are_refused(measure):
    core = Core(cpus=(0,), l2=0, l3=0, numa_node=0, package=0, kind=0)
    for other in (Topology.synthetic(), Topology((core,))):
        with pytest.raises(TopologyError, match=r"synthetic or captured. Use Topology.detect\(\)"):
            measure(other)
