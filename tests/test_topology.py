"""Topology: every way in which the kernel, or a container, tells what the machine is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched.errors import TopologyError
from deepsched.machine.sysfs import format_cpu_list, parse_cpu_list
from deepsched.machine.topology import Topology
from tests.support.strategies import random_topologies
from tests.support.sysfs_tree import SysfsTree, write_machine


@pytest.fixture
def tree(tmp_path: Path) -> SysfsTree:
    """A machine without CPUs yet."""
    return SysfsTree(tmp_path / "machine")


@pytest.fixture
def machine(tmp_path: Path) -> SysfsTree:
    """Eight cores, 0-7: two packages with an L3 each."""
    return write_machine(tmp_path / "machine", Topology.synthetic(cores_per_l3=4))


def read(tree: SysfsTree, affinity: set[int] | None = None) -> Topology:
    return Topology.from_sysfs(tree.root, affinity)


def core_cpus(topology: Topology) -> list[tuple[int, ...]]:
    return [core.cpus for core in topology.cores]


# --- A machine as a value ---------------------------------------------------------------------


def test_synthetic_numbers_first_threads_before_second_threads() -> None:
    topology = Topology.synthetic(packages=1, cores_per_l3=3, threads_per_core=2)
    assert core_cpus(topology) == [(0, 3), (1, 4), (2, 5)]
    assert topology.cpus == (0, 1, 2, 3, 4, 5)


def test_synthetic_nests_caches_in_nodes_in_packages() -> None:
    topology = Topology.synthetic(2, nodes_per_package=2, l3_per_node=2, cores_per_l3=1)
    assert [core.package for core in topology.cores] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [core.numa_node for core in topology.cores] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert topology.l3_groups == tuple(range(8))
    assert topology.numa_nodes == (0, 1, 2, 3)
    assert topology.packages == (0, 1)


@pytest.mark.parametrize("wrong", [{"packages": 0}, {"cores_per_l3": -1}])
def test_synthetic_refuses_numbers_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(TopologyError, match="an integer of at least 1, got"):
        Topology.synthetic(**wrong)


def test_only_the_detected_machine_is_local(machine: SysfsTree) -> None:
    assert Topology.detect().is_local
    assert not read(machine).is_local
    assert not Topology.synthetic().is_local


def test_where_it_was_read_does_not_make_it_another_machine() -> None:
    assert Topology.detect() == Topology.from_sysfs("/", os.sched_getaffinity(0))


def test_to_dict_is_ready_for_json(machine: SysfsTree) -> None:
    described = json.loads(json.dumps(read(machine).to_dict()))
    assert described["cores"][4] == {
        "cpus": [4],
        "l2": 4,
        "l3": 1,
        "numa_node": 1,
        "package": 1,
        "kind": 0,
    }
    assert described["cpu_quota"] is None


@given(topology=random_topologies(), old=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_was_written_is_read_back(
    topology: Topology, old: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = write_machine(tmp_path_factory.mktemp("machine"), topology, old)
    assert read(tree) == topology


@given(st.frozensets(st.integers(0, 300)))
def test_cpu_list_survives_a_round_trip(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


# --- Which CPUs -------------------------------------------------------------------------------


def test_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"/nowhere: no such folder"):
        Topology.from_sysfs(tmp_path / "nowhere")


def test_folder_without_cpus_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=f"{tmp_path}: no CPUs; looked for sys/devices"):
        Topology.from_sysfs(tmp_path)


@pytest.mark.parametrize("text", ["0-x", "0-99999999999999", "9" * 5000])
def test_file_that_is_no_cpu_set_is_an_error_that_names_it(machine: SysfsTree, text: str) -> None:
    machine.write("sys/devices/system/cpu/online", text)
    with pytest.raises(TopologyError, match=rf"cpu/online must hold a set of CPUs, got '{text}'"):
        read(machine)


def test_cpus_outside_the_affinity_mask_are_not_there(machine: SysfsTree) -> None:
    assert read(machine, {1, 5, 6, 99}).cpus == (1, 5, 6)


def test_core_keeps_the_threads_that_may_be_used(tmp_path: Path) -> None:
    tree = write_machine(tmp_path, Topology.synthetic(1, cores_per_l3=2, threads_per_core=2))
    assert core_cpus(read(tree, {0, 1, 3})) == [(0,), (1, 3)]


def test_caches_are_numbered_without_gaps_when_some_are_out_of_reach(machine: SysfsTree) -> None:
    assert read(machine, {5, 6}).l3_groups == (0,)
    assert read(machine, {5, 6}).packages == (1,)


def test_no_cpu_left_is_an_error_that_says_why(machine: SysfsTree) -> None:
    with pytest.raises(TopologyError, match="no CPU is left.*online: 0-7; affinity mask: 8"):
        read(machine, {8})
    with pytest.raises(TopologyError, match="affinity mask: none"):
        read(machine, set())


def test_offline_cpus_are_not_there_by_the_list(machine: SysfsTree) -> None:
    machine.set_online({0, 2, 3})
    assert read(machine).cpus == (0, 2, 3)


def test_offline_cpus_are_not_there_by_their_own_file(tree: SysfsTree) -> None:
    for cpu in range(3):
        tree.add_cpu(cpu)
    tree.write_cpu_file(1, "online", 0)
    tree.write_cpu_file(2, "online", 1)
    assert read(tree).cpus == (0, 2)


def test_offline_cpus_are_not_there_by_their_missing_topology(tree: SysfsTree) -> None:
    tree.add_cpu(0)
    tree.write_cpu_file(1, "crash_notes", "")
    assert read(tree).cpus == (0,)


# --- Cores and packages -----------------------------------------------------------------------


def test_more_cpus_than_a_word_of_the_mask_are_read(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path, old=True)
    for core in range(150):
        for cpu in (core, core + 150):
            tree.add_cpu(cpu, core={core, core + 150})
    assert core_cpus(read(tree)) == [(core, core + 150) for core in range(150)]


def test_same_core_id_in_one_package_does_not_make_a_core(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu, core_id=0)
    assert core_cpus(read(tree)) == [(0,), (1,)]


def test_siblings_with_core_ids_of_their_own_are_cores(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu, core={0, 1}, core_id=cpu)
    tree.add_cache(2, {0, 1})
    topology = read(tree)
    assert core_cpus(topology) == [(0,), (1,)]
    assert [core.l2 for core in topology.cores] == [0, 0]


@pytest.mark.parametrize("package", [-1, None])
def test_package_that_the_firmware_does_not_name_is_none(
    package: int | None, tree: SysfsTree
) -> None:
    tree.add_cpu(0, package=package)
    assert read(tree).cores[0].package is None
    assert read(tree).packages == ()


def test_packages_without_a_name_still_keep_their_cores_together(tree: SysfsTree) -> None:
    tree.add_node(0, range(4))
    for cpu in range(4):
        tree.add_cpu(cpu, package=-1)
        tree.write_cpu_file(cpu, "topology/package_cpus_list", "0,2" if cpu in (0, 2) else "1,3")
    assert core_cpus(read(tree)) == [(0,), (2,), (1,), (3,)]


def test_without_topology_folders_cpuinfo_tells_the_cores(tree: SysfsTree) -> None:
    tree.set_online(range(4))
    places = [(0, 0), (0, 1), (0, 0), (0, 1)]
    tree.write(
        "proc/cpuinfo",
        "\n\n".join(
            f"processor\t: {cpu}\nphysical id\t: {package}\ncore id\t\t: {core}"
            for cpu, (package, core) in enumerate(places)
        ),
    )
    topology = read(tree)
    assert core_cpus(topology) == [(0, 2), (1, 3)]
    assert topology.packages == (0,)


def test_without_sysfs_cpuinfo_tells_the_cpus(tree: SysfsTree) -> None:
    tree.write("proc/cpuinfo", "processor : 0\nBogoMIPS : 48\n\nprocessor : 1\n\nHardware : SoC")
    assert core_cpus(read(tree)) == [(0,), (1,)]


def test_threads_that_only_one_side_calls_siblings_are_in_one_core_each(tree: SysfsTree) -> None:
    tree.add_cpu(0, core={0, 1}, core_id=0)
    tree.add_cpu(1, core={1}, core_id=0)
    assert core_cpus(read(tree)) == [(0,), (1,)]


# --- Order ------------------------------------------------------------------------------------


def test_order_is_by_package_not_by_cpu_number(tree: SysfsTree) -> None:
    for cpu in range(6):
        tree.add_cpu(cpu, package=(1, 0)[cpu % 2])
    assert core_cpus(read(tree)) == [(1,), (3,), (5,), (0,), (2,), (4,)]


def test_packages_of_one_node_are_neighbours(tree: SysfsTree) -> None:
    for cpu in range(4):
        tree.add_cpu(cpu, package=cpu)
    tree.add_node(0, {0, 2})
    tree.add_node(1, {1, 3})
    assert core_cpus(read(tree)) == [(0,), (2,), (1,), (3,)]


def test_nodes_of_one_l3_are_neighbours(tree: SysfsTree) -> None:
    for cpu in range(4):
        tree.add_cpu(cpu)
        tree.add_node(cpu, {cpu})
    tree.add_cache(3, {0, 2})
    tree.add_cache(3, {1, 3})
    assert core_cpus(read(tree)) == [(0,), (2,), (1,), (3,)]


@pytest.mark.parametrize("level", ["l2", "cluster", "die"])
def test_cores_of_an_l2_cluster_or_die_are_neighbours_within_the_l3(
    level: str, tree: SysfsTree
) -> None:
    tree.add_cache(3, range(4))
    for cpu in range(4):
        tree.add_cpu(cpu)
    for cpus in ({0, 3}, {1, 2}):
        if level == "l2":
            tree.add_cache(2, cpus)
        else:
            for cpu in cpus:
                file = f"topology/{level}_cpus_list"
                tree.write_cpu_file(cpu, file, format_cpu_list(cpus))
    assert core_cpus(read(tree)) == [(0,), (3,), (1,), (2,)]


# --- Caches -----------------------------------------------------------------------------------


def test_machine_without_cache_files_has_no_cache_ids(tree: SysfsTree) -> None:
    tree.add_cpu(0)
    core = read(tree).cores[0]
    assert (core.l2, core.l3) == (None, None)


def test_instruction_caches_do_not_count(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
        tree.add_cache(2, {cpu}, "Data", index=2)
    tree.add_cache(2, {0, 1}, "Instruction", index=3)
    assert [core.l2 for core in read(tree).cores] == [0, 1]


def test_cache_that_names_no_cpu_is_its_cores_own(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
        tree.add_cache(3, {cpu})
        tree.write_cpu_file(cpu, "cache/index3/shared_cpu_list", "")
    assert [core.l3 for core in read(tree).cores] == [0, 1]


def test_some_cores_may_lack_a_cache(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
    tree.add_cache(3, {1})
    assert {core.cpus: core.l3 for core in read(tree).cores} == {(0,): None, (1,): 0}


# --- NUMA nodes -------------------------------------------------------------------------------


def test_kernel_without_numa_has_node_0(tree: SysfsTree) -> None:
    tree.add_cpu(0)
    assert read(tree).numa_nodes == (0,)


def test_node_numbers_may_have_gaps_and_nodes_no_cpus(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
    tree.add_node(3, {0})
    tree.add_node(8, ())
    tree.add_node(45, {1})
    assert read(tree).numa_nodes == (3, 45)


def test_offline_node_leaves_its_cpus_without_one(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
        tree.add_node(cpu, {cpu})
    tree.write("sys/devices/system/node/online", "1")
    assert {core.cpus: core.numa_node for core in read(tree).cores} == {(0,): None, (1,): 1}


def test_nodes_that_list_the_same_cpus_are_one_node(tree: SysfsTree) -> None:
    for cpu in (0, 1):
        tree.add_cpu(cpu)
        tree.add_node(cpu, {0, 1})
    assert read(tree).numa_nodes == (0,)


# --- Kinds of core ----------------------------------------------------------------------------


def kinds(tree: SysfsTree) -> list[int]:
    return [core.kind for core in read(tree).cores]


def add_cpus(tree: SysfsTree, file: str, values: list[int]) -> None:
    for cpu, value in enumerate(values):
        tree.add_cpu(cpu)
        tree.write_cpu_file(cpu, file, value)


def test_capacity_tells_kinds_apart_and_tolerates_favoured_cores(tree: SysfsTree) -> None:
    add_cpus(tree, "cpu_capacity", [718, 997, 731, 1017, 1024, 300])
    assert kinds(tree) == [1, 2, 1, 2, 2, 0]


def test_base_frequency_decides_where_capacities_are_equal(tree: SysfsTree) -> None:
    add_cpus(tree, "cpu_capacity", [1024, 1024])
    add_cpus(tree, "cpufreq/base_frequency", [1_900_000, 1_400_000])
    add_cpus(tree, "cpufreq/cpuinfo_max_freq", [3_000_000, 5_000_000])
    assert kinds(tree) == [1, 0]


def test_small_differences_of_maximum_frequency_are_one_kind(tree: SysfsTree) -> None:
    add_cpus(tree, "cpufreq/cpuinfo_max_freq", [5_000_000, 5_200_000, 5_500_000])
    assert kinds(tree) == [0, 0, 0]


def test_number_that_some_cpus_do_not_have_tells_nothing(tree: SysfsTree) -> None:
    add_cpus(tree, "cpufreq/cpuinfo_max_freq", [5_000_000])
    tree.add_cpu(1)
    assert kinds(tree) == [0, 0]


def test_frequencies_are_found_in_policies_of_several_cpus(tree: SysfsTree) -> None:
    for policy, (cpus, frequency) in enumerate([("0 1", 1_800_000), ("2 3", 2_400_000)]):
        folder = f"sys/devices/system/cpu/cpufreq/policy{policy}"
        tree.write(f"{folder}/related_cpus", cpus)
        tree.write(f"{folder}/cpuinfo_max_freq", frequency)
    for cpu in range(4):
        tree.add_cpu(cpu)
    assert kinds(tree) == [0, 0, 1, 1]


def test_intel_core_types_win_over_numbers(tree: SysfsTree) -> None:
    add_cpus(tree, "cpufreq/cpuinfo_max_freq", [3_000_000, 3_000_000, 3_000_000])
    tree.write("sys/devices/cpu_core/cpus", "0")
    tree.write("sys/devices/cpu_atom/cpus", "1")
    tree.write("sys/devices/cpu_lowpower/cpus", "2")
    assert kinds(tree) == [2, 1, 0]


# --- cpuset -----------------------------------------------------------------------------------


def test_cgroup2_effective_cpuset_limits_the_cpus(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("proc/self/cgroup", "0::/job/step")
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "0-7")
    machine.write("sys/fs/cgroup/job/cpuset.cpus.effective", "0-5")
    machine.write("sys/fs/cgroup/job/step/cpuset.cpus.effective", "2-3")
    assert read(machine).cpus == (2, 3)


def test_group_without_cpuset_has_its_ancestors(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("proc/self/cgroup", "0::/job/step/task")
    machine.write("sys/fs/cgroup/job/cpuset.cpus.effective", "0-5")
    machine.write("sys/fs/cgroup/job/step/cpuset.cpus.effective", "")
    assert read(machine).cpus == (0, 1, 2, 3, 4, 5)


def test_cgroup1_cpuset_may_name_offline_cpus(machine: SysfsTree) -> None:
    machine.add_mount("cgroup", "/sys/fs/cgroup/cpuset", "rw,cpuset")
    machine.write("proc/self/cgroup", "3:cpuset:/job\n2:cpu,cpuacct:/other\n0::/elsewhere")
    machine.write("sys/fs/cgroup/cpuset/job/cpuset.cpus", "6-20")
    assert read(machine).cpus == (6, 7)


def test_cgroup1_mounted_in_version_2_mode_has_an_effective_cpuset(machine: SysfsTree) -> None:
    machine.add_mount("cgroup", "/cpuset", "rw,cpuset,cpuset_v2_mode")
    machine.write("proc/self/cgroup", "3:cpuset:/")
    machine.write("cpuset/cpuset.cpus", "0-7")
    machine.write("cpuset/cpuset.effective_cpus", "0-1")
    assert read(machine).cpus == (0, 1)


@pytest.mark.parametrize(
    ("kind", "options", "file"),
    [
        ("cpuset", "rw", "cpus"),
        ("cpuset", "rw", "cpuset.cpus"),
        ("cgroup", "rw,cpuset,noprefix", "cpus"),
    ],
)
def test_old_cpuset_mounts_are_read_with_and_without_prefix(
    kind: str, options: str, file: str, machine: SysfsTree
) -> None:
    machine.add_mount(kind, "/dev/cpuset", options)
    machine.write("proc/self/cpuset", "/job")
    machine.write(f"dev/cpuset/job/{file}", "4")
    assert read(machine).cpus == (4,)


def test_hybrid_of_both_versions_is_read_where_the_controller_is(machine: SysfsTree) -> None:
    machine.add_mount("cgroup", "/cgroup/memory", "rw,memory")
    machine.add_mount("cgroup2", "/cgroup/unified")
    machine.write("proc/self/cpuset", "/uid/job")
    machine.write("cgroup/unified/uid/job/cpuset.cpus.effective", "0-5")
    assert read(machine).cpus == (0, 1, 2, 3, 4, 5)


def test_mount_point_with_a_space_is_found(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", r"/odd\040place")
    machine.write("odd place/cpuset.cpus.effective", "3")
    assert read(machine).cpus == (3,)


def test_mounts_of_other_kinds_and_without_a_source_do_no_harm(machine: SysfsTree) -> None:
    machine.write("proc/mounts", " /tmp tmpfs rw 0 0\n /sys/fs/cgroup cgroup2 rw 0 0\n\nodd")
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "3")
    assert read(machine).cpus == (3,)
    machine.write(
        "proc/self/mountinfo", "9 1 0:1 /job /cg rw - cgroup2  rw\n8 1 0:2 / /x rw - a b c"
    )
    machine.write("cg/cpuset.cpus.effective", "4")
    assert read(machine).cpus == (4,)


def test_cpuset_without_an_online_cpu_is_an_error_that_says_so(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("sys/fs/cgroup/cpuset.cpus.effective", "8-9")
    with pytest.raises(TopologyError, match="cgroup's cpuset: 8-9"):
        read(machine)


# --- CPU quota --------------------------------------------------------------------------------


def test_machine_without_cgroups_has_no_quota(machine: SysfsTree) -> None:
    assert read(machine).cpu_quota is None


def test_quota_is_the_smallest_on_the_way_to_the_root(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("proc/self/cgroup", "0::/a/b/c")
    machine.write("sys/fs/cgroup/a/cpu.max", "150000 100000")
    machine.write("sys/fs/cgroup/a/b/cpu.max", "200000 50000")
    machine.write("sys/fs/cgroup/a/b/c/cpu.max", "max 100000")
    assert read(machine).cpu_quota == 1.5


@pytest.mark.parametrize("text", ["", "max 100000", "100000 0", "9" * 5000 + " 1", "-1 1", "x y"])
def test_what_is_no_quota_limits_nothing(machine: SysfsTree, text: str) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("proc/self/cgroup", "0::/a")
    machine.write("sys/fs/cgroup/a/cpu.max", text)
    assert read(machine).cpu_quota is None


def test_cgroup1_quota_is_read_and_minus_one_is_none(machine: SysfsTree) -> None:
    machine.add_mount("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct")
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/a/b\n3:cpuset:/c")
    for group, quota in (("a", 250_000), ("a/b", -1)):
        machine.write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us", quota)
        machine.write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us", 100_000)
    assert read(machine).cpu_quota == 2.5


@pytest.mark.parametrize("group", ["/docker/1f", "/docker/1f/worker", "/", "/../other", "/hidden"])
def test_container_that_sees_a_part_of_the_hierarchy_finds_its_own_quota(
    group: str, machine: SysfsTree
) -> None:
    machine.add_mountinfo("cgroup", "/sys/fs/cgroup/cpu", "rw,cpu", root="/docker/1f")
    machine.write("proc/self/cgroup", f"4:cpu:{group}")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", 300_000)
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100_000)
    assert read(machine).cpu_quota == 3.0


def test_group_that_is_not_visible_falls_back_to_the_mount_point(machine: SysfsTree) -> None:
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("proc/self/cgroup", "0::/system.slice/docker-1f.scope")
    machine.write("sys/fs/cgroup/cpu.max", "50000 100000")
    assert read(machine).cpu_quota == 0.5
