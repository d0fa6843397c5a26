"""Partition: which cores make which stream, and what is said about it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched.errors import StreamConfigError
from deepsched.machine.partition import Partition, partition
from deepsched.machine.topology import Topology
from tests.support.strategies import random_topologies

TWO_BY_EIGHT = Topology.synthetic(packages=2, cores_per_l3=8)
EPYC = Topology.synthetic(packages=2, l3_per_node=4, cores_per_l3=8)


def ranges(result: Partition) -> list[tuple[int, int]]:
    """First and last CPU of each stream."""
    return [(stream.cpus[0], stream.cpus[-1]) for stream in result.streams]


def warned(result: Partition) -> dict[str, tuple[int, ...]]:
    return {warning.kind: warning.streams for warning in result.warnings}


def chosen(topology: Topology, num_cores: int) -> list[int]:
    """The CPUs of a choice of cores, in the order of the streams."""
    return [cpu for stream in partition(topology, num_cores).streams for cpu in stream.cpus]


# --- The guide's example: two packages of eight cores -----------------------------------------


@pytest.mark.parametrize(
    ("num_streams", "expected"),
    [
        (1, [(0, 15)]),
        (2, [(0, 7), (8, 15)]),
        (3, [(0, 5), (6, 10), (11, 15)]),
        (4, [(0, 3), (4, 7), (8, 11), (12, 15)]),
    ],
)
def test_two_packages_of_eight_cores(num_streams: int, expected: list[tuple[int, int]]) -> None:
    assert ranges(partition(TWO_BY_EIGHT, num_streams=num_streams)) == expected


def test_one_stream_per_l3_has_no_warnings() -> None:
    assert partition(TWO_BY_EIGHT) == partition(TWO_BY_EIGHT, 16, 2)
    assert partition(TWO_BY_EIGHT).warnings == ()


def test_stream_over_two_packages_is_warned_of() -> None:
    result = partition(TWO_BY_EIGHT, num_streams=3)
    assert warned(result) == {
        "straddles_packages": (1,),
        "shares_l3": (0, 1, 2),
        "uneven_sizes": (1, 2),
    }
    assert str(result.warnings[0]) == (
        "stream 1: cores in several packages, which costs remote memory accesses; "
        "num_streams=2 avoids it"
    )


def test_streams_that_share_an_l3_are_warned_of() -> None:
    result = partition(TWO_BY_EIGHT, num_streams=4)
    assert warned(result) == {"shares_l3": (0, 1, 2, 3)}
    assert str(result.warnings[0]).startswith("streams 0-3: L3 cache shared")


def test_stream_over_two_nodes_is_warned_of() -> None:
    topology = Topology.synthetic(packages=2, nodes_per_package=2, cores_per_l3=2)
    assert warned(partition(topology, num_streams=2)) == {"straddles_nodes": (0, 1)}
    assert warned(partition(topology, num_streams=1)) == {"straddles_packages": (0,)}


def test_stream_of_two_kinds_of_core_is_warned_of() -> None:
    cores = Topology.synthetic(packages=1, cores_per_l3=4).cores
    hybrid = Topology((replace(cores[0], kind=1), *cores[1:]))
    assert warned(partition(hybrid))["mixed_kinds"] == (0,)
    assert "num_streams=4 avoids it" in str(partition(hybrid).warnings[0])


def test_warning_is_ready_for_json() -> None:
    warning = partition(TWO_BY_EIGHT, num_streams=4).warnings[0]
    described = json.loads(json.dumps(warning.to_dict()))
    assert described == {
        "kind": "shares_l3",
        "streams": [0, 1, 2, 3],
        "message": str(warning),
    }


@given(random_topologies(), st.data())
def test_following_the_advice_ends_the_warning(topology: Topology, data: st.DataObject) -> None:
    most = sum(len(stream.cores) for stream in partition(topology).streams)
    result = partition(topology, num_streams=data.draw(st.integers(1, most)))
    for warning in result.warnings:
        better = int(warning.message.rpartition("num_streams=")[2].partition(" ")[0])
        assert warning.kind not in warned(partition(topology, num_streams=better))


# --- What a stream is -------------------------------------------------------------------------


def test_stream_tells_what_it_touches() -> None:
    _, stream, _ = partition(TWO_BY_EIGHT, num_streams=3).streams
    assert stream.index == 1
    assert [core.cpus for core in stream.cores] == [(6,), (7,), (8,), (9,), (10,)]
    assert (stream.numa_nodes, stream.l3_groups, stream.packages) == ((0, 1), (0, 1), (0, 1))


def test_one_hardware_thread_per_core_unless_asked_for_more() -> None:
    topology = Topology.synthetic(packages=1, cores_per_l3=2, threads_per_core=2)
    assert partition(topology).streams[0].cpus == (0, 1)
    assert partition(topology, threads_per_core=2).streams[0].cpus == (0, 2, 1, 3)


def test_core_with_fewer_threads_gives_what_it_has() -> None:
    cores = Topology.synthetic(packages=1, cores_per_l3=2, threads_per_core=2).cores
    topology = Topology((cores[0], replace(cores[1], cpus=(1,))))
    assert partition(topology, threads_per_core=2).streams[0].cpus == (0, 2, 1)


@given(random_topologies(), st.data())
def test_streams_are_disjoint_neighbours_of_nearly_equal_size(
    topology: Topology, data: st.DataObject
) -> None:
    budget = sum(len(stream.cores) for stream in partition(topology).streams)
    num_cores = data.draw(st.integers(1, budget))
    num_streams = data.draw(st.integers(1, num_cores))
    streams = partition(topology, num_cores, num_streams).streams
    used = [core for stream in streams for core in stream.cores]
    assert [stream.index for stream in streams] == list(range(num_streams))
    assert used == [core for core in topology.cores if core in used]  # in order, each once
    assert len(used) == num_cores
    sizes = [len(stream.cores) for stream in streams]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    assert all(stream.cpus == tuple(core.cpus[0] for core in stream.cores) for stream in streams)


@given(random_topologies(with_quota=False))
def test_all_cores_are_used_once_by_default(topology: Topology) -> None:
    used = (core for stream in partition(topology).streams for core in stream.cores)
    assert tuple(used) == topology.cores


@given(random_topologies(with_quota=False))
def test_one_stream_per_l3_else_per_node_by_default(topology: Topology) -> None:
    expected = len(topology.l3_groups) or len(topology.numa_nodes)
    assert len(partition(topology).streams) == expected


@pytest.mark.parametrize(("packages", "expected"), [((0, 0, 1, 1), 2), ((None,) * 4, 1)])
def test_one_stream_per_package_without_l3_and_nodes(
    packages: tuple[int | None, ...], expected: int
) -> None:
    cores = Topology.synthetic(packages=1, cores_per_l3=4).cores
    topology = Topology(
        tuple(
            replace(core, package=package, numa_node=None, l3=None)
            for core, package in zip(cores, packages, strict=True)
        )
    )
    assert len(partition(topology).streams) == expected


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_no_stream_straddles_packages_that_are_cut_alike(
    packages: int, caches: int, cores: int, data: st.DataObject
) -> None:
    topology = Topology.synthetic(packages, l3_per_node=caches, cores_per_l3=cores)
    size = data.draw(st.sampled_from([n for n in range(1, 13) if caches * cores % n == 0]))
    result = partition(topology, num_streams=packages * caches * cores // size)
    assert "straddles_packages" not in warned(result)


# --- Fewer cores than there are ---------------------------------------------------------------


def test_few_cores_come_from_one_package_and_one_l3() -> None:
    assert chosen(EPYC, 8) == list(range(8))


def test_cores_are_spread_evenly_over_the_fewest_l3s() -> None:
    assert chosen(EPYC, 12) == [*range(6), *range(8, 14)]


def test_cores_are_spread_evenly_over_the_fewest_packages() -> None:
    assert chosen(TWO_BY_EIGHT, 12) == [*range(6), *range(8, 14)]
    assert chosen(TWO_BY_EIGHT, 9) == [*range(5), *range(8, 12)]


def test_package_with_more_usable_cores_comes_first() -> None:
    assert chosen(Topology(TWO_BY_EIGHT.cores[6:]), 4) == [8, 9, 10, 11]


def test_a_small_package_is_used_whole() -> None:
    assert chosen(Topology(TWO_BY_EIGHT.cores[6:]), 9) == [6, 7, *range(8, 15)]


def test_most_capable_cores_of_a_package_come_first() -> None:
    cores = Topology.synthetic(packages=1, cores_per_l3=6).cores
    hybrid = Topology(tuple(replace(core, kind=core.cpus[0] % 2) for core in cores))
    assert chosen(hybrid, 2) == [1, 3]
    assert chosen(hybrid, 4) == [0, 1, 3, 5]


@given(random_topologies(with_quota=False), st.data())
def test_no_package_is_used_that_is_not_needed(topology: Topology, data: st.DataObject) -> None:
    num_cores = data.draw(st.integers(1, len(topology.cores)))
    used = [core for stream in partition(topology, num_cores).streams for core in stream.cores]
    sizes = {
        package: sum(core.package == package for core in topology.cores)
        for package in {core.package for core in topology.cores}
    }
    largest_first = itertools.accumulate(sorted(sizes.values(), reverse=True))
    needed = next(n for n, total in enumerate(largest_first, start=1) if total >= num_cores)
    assert len({core.package for core in used}) == needed


# --- Bounds -----------------------------------------------------------------------------------


@given(random_topologies())
def test_quota_rounded_up_bounds_the_cores(topology: Topology) -> None:
    used = sum(len(stream.cores) for stream in partition(topology).streams)
    quota = math.inf if topology.cpu_quota is None else math.ceil(topology.cpu_quota)
    assert used == min(quota, len(topology.cores))


def test_more_cores_than_the_quota_are_refused() -> None:
    topology = replace(TWO_BY_EIGHT, cpu_quota=2.5)
    with pytest.raises(
        StreamConfigError,
        match=r"num_cores .* between 1 and 3 \(the cgroup's CPU quota is 2.5 cores\), got 8",
    ):
        partition(topology, num_cores=8)


def test_quota_above_the_cores_does_not_bound_them() -> None:
    assert len(partition(replace(TWO_BY_EIGHT, cpu_quota=64.0), num_cores=16).streams) == 2


@pytest.mark.parametrize("num_cores", [-1, 0, 17])
def test_num_cores_out_of_bounds_names_the_affinity_mask(num_cores: int) -> None:
    with pytest.raises(
        StreamConfigError,
        match=rf"num_cores .* between 1 and 16 \(.*affinity mask.*\), got {num_cores}$",
    ):
        partition(TWO_BY_EIGHT, num_cores=num_cores)


@pytest.mark.parametrize("num_streams", [-1, 0, 9, 12])
def test_num_streams_out_of_bounds_names_the_usable_cores(num_streams: int) -> None:
    with pytest.raises(
        StreamConfigError,
        match=rf"num_streams .* between 1 and 8 \(usable cores\), got {num_streams}$",
    ):
        partition(TWO_BY_EIGHT, num_cores=8, num_streams=num_streams)


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_out_of_bounds_are_an_error(threads: int) -> None:
    with pytest.raises(StreamConfigError, match="threads_per_core .* between 1 and 2"):
        partition(Topology.synthetic(threads_per_core=2), threads_per_core=threads)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("num_cores", r"must be 1 \(one usable core: online, .*\)"),
        ("num_streams", r"must be 1 \(one usable core\)"),
        ("threads_per_core", r"must be 1 \(this machine has one hardware thread per core\)"),
    ],
)
def test_range_of_one_value_is_that_value(option: str, told: str) -> None:
    machine = Topology.synthetic(packages=1, cores_per_l3=1)
    with pytest.raises(StreamConfigError, match=f"^{option} {told}, got 2$"):
        partition(machine, **{option: 2})


@pytest.mark.parametrize("name", ["num_cores", "num_streams", "threads_per_core"])
@pytest.mark.parametrize("value", [True, 2.0, "2"])
def test_numbers_of_the_wrong_type_are_an_error(name: str, value: object) -> None:
    with pytest.raises(StreamConfigError, match=rf"{name} must be .* integer .*, got {value!r}"):
        partition(TWO_BY_EIGHT, **{name: value})  # type: ignore[arg-type]


# --- The remedy -------------------------------------------------------------------------------


@given(random_topologies(with_quota=False), st.integers(1, 30))
def test_a_warning_advises_the_nearest_num_streams_without_it(
    topology: Topology, num_streams: int
) -> None:
    most = len(topology.cores)
    count = min(num_streams, most)
    for warning in partition(topology, num_streams=count).warnings:
        without = [
            other
            for other in range(1, most + 1)
            if warning.kind not in warned(partition(topology, num_streams=other))
        ]
        nearest = min(without, key=lambda other: abs(other - count))
        assert f"num_streams={nearest} avoids it" in str(warning)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("counts", [(8192, 1, 1, 1), (1, 1, 1, 8192), (64, 8, 8, 2)])
def test_the_largest_machines_take_no_time(counts: tuple[int, int, int, int]) -> None:
    """Where each number of streams was cut to be looked at, half a minute."""
    machine = Topology.synthetic(*counts)
    for num_streams in (3, 4097, 5000):
        assert len(partition(machine, num_streams=num_streams).streams) == num_streams
