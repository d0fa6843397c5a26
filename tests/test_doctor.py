"""Doctor: what each machine is told, on machines that are made up."""

from __future__ import annotations

import ctypes.util
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepsched
from deepsched import Topology, check_hardware, partition
from deepsched.cli import main
from deepsched.doctor import Check, Diagnosis, Status, latency, limits, versions
from deepsched.doctor.host import Host
from deepsched.errors import OrtImportError, TopologyError
from deepsched.machine.sysfs import format_cpu_list, parse_cpu_list
from tests.support.processes import run_python
from tests.support.strategies import random_topologies
from tests.support.sysfs_tree import SysfsTree, write_machine

AVX2 = "sse2 avx avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"
VNNI = f"{AVX512} avx512_vnni"
NEON = "fp asimd"

SMT = Topology.synthetic(packages=1, cores_per_l3=8, threads_per_core=2)  # siblings: n and n+8
TWO_NODES = Topology.synthetic(packages=2, cores_per_l3=4)


@pytest.fixture
def tree(tmp_path: Path) -> SysfsTree:
    """A healthy machine of eight cores, 0-7."""
    machine = write_machine(
        tmp_path / "machine", Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4)
    )
    machine.add_flags(VNNI, range(8))
    machine.add_frequency(range(8), "intel_pstate", "powersave", "balance_performance")
    machine.write("sys/devices/system/cpu/intel_pstate/no_turbo", 0)
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    machine.write("proc/stat", "cpu  1000 0 500 9000 10 0 20 5 0 0\ncpu0 1 2 3")
    machine.write("proc/pressure/cpu", "some avg10=0.40 avg60=30.00 avg300=0.00 total=5")
    machine.write("proc/loadavg", "1.20 4.00 4.00 1/84 31176")
    machine.write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 5 kB")
    machine.write("proc/self/status", "Name:\tpython\nMems_allowed_list:\t0")
    machine.write("proc/self/cgroup", "0::/job")
    machine.add_mount("cgroup2", "/sys/fs/cgroup")
    machine.write("sys/fs/cgroup/job/cgroup.procs", 1)
    return machine


def put_in_cgroup(tree: SysfsTree, **files: object) -> None:
    for name, text in files.items():
        tree.write(f"sys/fs/cgroup/job/{name.replace('_', '.', 1)}", text)


def another(tree: SysfsTree, topology: Topology) -> SysfsTree:
    """A machine beside the healthy one, with nothing told but its CPUs."""
    return write_machine(tree.root.parent / "another", topology)


def check(tree: SysfsTree, name: str, affinity: set[int] | None = None) -> Check:
    return check_hardware(tree.root, affinity)[name]


def test_healthy_machine_is_told_so(tree: SysfsTree) -> None:
    diagnosis = check_hardware(tree.root, range(8))
    assert diagnosis.warnings == ()
    unknown = {check.name for check in diagnosis.checks if check.status == Status.unknown}
    assert unknown == {
        "core_latency",
        "streams",
        "leases",
        "shared_memory",
        "thread_pools",
        "packages",
        "onnxruntime",
    }


def test_only_warnings_have_advice_and_all_of_them_do(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="250000 100000", cpu_stat="throttled_usec 0")
    tree.add_frequency(range(8), "acpi-cpufreq", "powersave")
    for mask, name in (({0}, "affinity"), ({0, 1, 2}, "cpu_quota")):
        checks = check_hardware(tree.root, mask).checks
        assert {check.name for check in checks if check.advice} == {name, "governor"}
        assert all((check.status == Status.warn) == bool(check.advice) for check in checks)


# --- Instruction sets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "fp32", "found"),
    [
        ("sse2", Status.warn, "4 floats"),
        ("sse2 avx", Status.warn, "8 floats"),
        ("sse2 avx avx2", Status.warn, "no AVX2 with FMA"),
        (AVX2, Status.ok, "8 floats"),
        (AVX512, Status.ok, "16 floats"),
    ],
)
def test_cpu_without_avx2_warns(flags: str, fp32: Status, found: str, tree: SysfsTree) -> None:
    tree.write("proc/cpuinfo", f"processor : 0\nflags : {flags}")
    check = check_hardware(tree.root)["instructions_fp32"]
    assert (check.status, found in check.found) == (fp32, True)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (VNNI, "AVX-512 VNNI"),
        (f"{AVX2} avx_vnni", "AVX VNNI"),
        (f"{VNNI} amx_tile amx_int8", "AMX and VNNI"),
    ],
)
def test_cpu_with_vnni_or_amx_is_fit_for_int8(flags: str, found: str, tree: SysfsTree) -> None:
    tree.write("proc/cpuinfo", f"processor : 0\nflags : {flags}")
    int8 = check(tree, "instructions_int8")
    assert (int8.status, int8.found) == (Status.ok, found)


@pytest.mark.parametrize(("flags", "saturates"), [(AVX512, True), (AVX2, True), ("sse2", False)])
def test_int8_without_vnni_may_saturate_where_avx_sums_in_16_bits(
    flags: str, saturates: bool, tree: SysfsTree
) -> None:
    tree.write("proc/cpuinfo", f"processor : 0\nflags : {flags}")
    int8 = check(tree, "instructions_int8")
    assert int8.status == Status.warn
    assert ("saturate" in int8.meaning) == saturates
    assert ("reduce_range=True" in int8.advice) == saturates


def test_instruction_set_that_only_some_usable_cpus_have_does_not_count(tree: SysfsTree) -> None:
    tree.write("proc/cpuinfo", "")
    tree.add_flags(VNNI, range(4))
    tree.add_flags(AVX2, range(4, 8))
    assert check(tree, "instructions_fp32").found.startswith("AVX2")
    assert check(tree, "instructions_fp32", {0, 1}).found.startswith("AVX-512")


@pytest.mark.parametrize(
    ("features", "status", "found"),
    [
        (NEON, Status.warn, "neither dot product"),
        (f"{NEON} asimddp", Status.ok, "dot product"),
        (f"{NEON} asimddp i8mm", Status.ok, "matrix instructions"),
    ],
)
def test_arm_int8_needs_dot_products(
    features: str, status: Status, found: str, tree: SysfsTree
) -> None:
    tree.write("proc/cpuinfo", f"processor : 0\nFeatures : {features}")
    int8 = check(tree, "instructions_int8")
    assert int8.status == status
    assert found in int8.found
    assert "saturate" not in int8.meaning


def test_arm_features_are_explained(tree: SysfsTree) -> None:
    tree.write("proc/cpuinfo", "")
    tree.add_flags(f"{NEON} fphp asimdhp asimddp sve i8mm bf16", range(8), "Features")
    assert "NEON" in check(tree, "instructions_fp32").found
    assert "fp16 arithmetic" in check(tree, "instructions_fp16").found
    assert "gemm_fastmath_arm64_bfloat16" in check(tree, "instructions_bf16").meaning
    tree.write("proc/cpuinfo", f"processor : 0\nFeatures : {NEON} sve sme sme2")
    assert "SME's tiles" in check(tree, "instructions_fp32").found


# --- CPUs and their time ----------------------------------------------------------------------


def test_narrow_affinity_is_told(tree: SysfsTree) -> None:
    affinity = check(tree, "affinity", {2})
    assert affinity.status == Status.warn
    assert "1 of the 8 CPUs" in affinity.found
    assert "taskset -acp 0-7 PID" in affinity.advice
    assert affinity.data == {"cpus": [2], "left_out_cpus": [0, 1, 3, 4, 5, 6, 7]}


def test_affinity_that_the_cpuset_explains_is_no_warning(tree: SysfsTree) -> None:
    tree.write("sys/fs/cgroup/job/cpuset.cpus.effective", "0-1")
    assert check(tree, "affinity", {0, 1}).status == Status.ok
    assert check(tree, "affinity", {0}).status == Status.warn
    cpuset = check(tree, "cpuset", {0, 1})
    assert (cpuset.status, cpuset.data["cpus"]) == (Status.ok, [0, 1])


def test_affinity_that_leaves_isolated_cpus_out_is_no_warning(tree: SysfsTree) -> None:
    tree.write("sys/devices/system/cpu/isolated", "4-7")
    affinity = check(tree, "affinity", {0, 1, 2, 3})
    assert affinity.status == Status.ok
    assert "isolated" in affinity.found


def test_affinity_of_a_whole_node_or_kind_is_no_warning(tree: SysfsTree) -> None:
    two = another(tree, TWO_NODES)
    assert check(two, "affinity", {4, 5, 6, 7}).status == Status.ok
    assert check(two, "affinity", {3, 4, 5, 6}).status == Status.warn


def test_fractional_quota_says_how_many_cores_are_used_and_what_to_grant(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="250000 100000")
    quota = check(tree, "cpu_quota")
    assert quota.status == Status.warn
    assert "2.5 cores of CPU time for 8 usable cores; deepsched uses 3 cores" in quota.found
    assert "after 83% of each period" in quota.meaning
    assert "--cpus=3" in quota.advice
    assert "num_cores=2" in quota.advice
    streams = partition(Topology.from_sysfs(tree.root)).streams
    cpus = format_cpu_list(cpu for stream in streams for cpu in stream.cpus)
    assert f"--cpuset-cpus={cpus}, " in quota.advice


def test_whole_quota_warns_of_shared_cores_and_not_of_throttling(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="200000 100000")
    quota = check(tree, "cpu_quota")
    assert quota.status == Status.warn
    assert "period" not in quota.meaning
    assert "--cpus=" not in quota.advice


def test_quota_advises_whole_cores_where_there_is_smt(tree: SysfsTree) -> None:
    machine = another(tree, dataclasses.replace(SMT, cpu_quota=4))
    assert "--cpuset-cpus=0-3,8-11, " in check(machine, "cpu_quota").advice
    assert "pinned to CPUs 0-3" in check(machine, "cpu_quota").found


def test_mask_as_wide_as_the_quota_is_no_warning(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="250000 100000")
    assert check(tree, "affinity", {0, 1}).status == Status.ok
    assert "taskset -acp 0-1 PID" in check(tree, "affinity", {1}).advice


def test_quota_below_one_core_is_not_told_to_use_none(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="50000 100000")
    assert "num_cores" not in check(tree, "cpu_quota").advice


def test_quota_of_all_usable_cores_is_no_warning(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_max="200000 100000")
    assert check(tree, "cpu_quota", {0, 1}).status == Status.ok


@pytest.mark.parametrize(
    ("num_throttled", "status"), [(0, Status.ok), (1, Status.ok), (5, Status.warn)]
)
def test_throttling_warns_from_one_period_in_a_thousand_on(
    num_throttled: int, status: Status, tree: SysfsTree
) -> None:
    put_in_cgroup(
        tree,
        cpu_max="200000 100000",
        cpu_stat=f"usage_usec 9\nnr_periods 1000\nnr_throttled {num_throttled}\n"
        f"throttled_usec {num_throttled * 50_000}",
    )
    throttling = check(tree, "throttling")
    assert throttling.status == status
    assert throttling.data["share_of_periods"] == num_throttled / 1000
    assert throttling.data["seconds"] == pytest.approx(num_throttled * 0.05)


def test_throttling_by_a_group_above_is_found(tree: SysfsTree) -> None:
    put_in_cgroup(tree, cpu_stat="nr_periods 10\nnr_throttled 0\nthrottled_usec 0")
    tree.write("sys/fs/cgroup/cpu.stat", "nr_periods 10\nnr_throttled 5\nthrottled_usec 9000")
    assert check(tree, "throttling").status == Status.warn


# --- What a container sees --------------------------------------------------------------------

LIMITS = ("cpuset", "cpu_quota", "throttling")


def test_limits_are_unknown_without_a_mount(tree: SysfsTree) -> None:
    tree.write("proc/mounts", "")
    assert [check(tree, name).status for name in LIMITS] == [Status.unknown] * 3
    assert "unknown whether a cgroup limits it" in check(tree, "memory").found


def test_limits_are_unknown_where_the_controller_is_mounted_elsewhere(tree: SysfsTree) -> None:
    tree.write("proc/self/cgroup", "3:cpu,cpuacct:/job\n2:cpuset:/job\n0::/job")
    assert [check(tree, name).status for name in LIMITS] == [Status.unknown] * 3


def test_limits_are_unknown_where_the_own_group_is_outside_of_the_mount(tree: SysfsTree) -> None:
    tree.write("proc/self/cgroup", "0::/../other")
    tree.write("sys/fs/cgroup/cpu.stat", "nr_periods 10\nnr_throttled 9\nthrottled_usec 9")
    assert [check(tree, name).status for name in LIMITS] == [Status.unknown] * 3


def test_kernel_without_cgroups_limits_nothing(tree: SysfsTree) -> None:
    tree.write("proc/mounts", "")
    tree.write("proc/filesystems", "nodev\tproc\n\text4")
    for name in LIMITS:
        limit = check(tree, name)
        assert limit.status == Status.ok
        assert "kernel has no cgroups" in limit.found
    tree.write("proc/filesystems", "nodev\tproc\nnodev\tcgroup2")
    assert check(tree, "cpu_quota").status == Status.unknown


def sees_part(tree: SysfsTree) -> set[str]:
    diagnosis = check_hardware(tree.root)
    assert {diagnosis[name].status for name in (*LIMITS, "memory")} == {Status.ok}
    names = (*LIMITS, "memory")
    return {name for name in names if "as far as this container sees" in diagnosis[name].found}


def test_private_namespace_is_fine_and_told_to_hide_what_is_above(tree: SysfsTree) -> None:
    """As `docker run` makes it: the mount's root is the container's own group."""
    tree.write("proc/self/cgroup", "0::/")
    assert sees_part(tree) == set()  # no cgroup.events: the top of the hierarchy
    for name, text in {
        "cgroup.events": "populated 1",
        "cpu.max": "max 100000",
        "cpu.stat": "nr_periods 9\nnr_throttled 0\nthrottled_usec 0",
    }.items():
        tree.write(f"sys/fs/cgroup/{name}", text)
    assert sees_part(tree) == {*LIMITS, "memory"}
    # A group's effective cpuset is what those above leave it: that is seen in full.
    tree.write("sys/fs/cgroup/cpuset.cpus.effective", "0-7")
    tree.write("sys/fs/cgroup/cpu.max", "800000 100000")
    tree.write("sys/fs/cgroup/memory.max", 1 << 30)
    assert sees_part(tree) == {"cpu_quota", "throttling"}


@pytest.mark.parametrize("root", ["/docker/id", "/"])
def test_container_of_version_1_sees_a_part(root: str, tree: SysfsTree) -> None:
    for name in ("cpu", "cpuset", "memory"):
        tree.add_mountinfo("cgroup", f"/cg/{name}", f"rw,{name}", root)
        tree.write(f"cg/{name}/cgroup.procs", 1)
    tree.write("proc/self/cgroup", f"3:cpu:{root}\n2:cpuset:{root}\n1:memory:{root}\n0::/")
    assert sees_part(tree) == {*LIMITS, "memory"}
    for name in ("cpu", "cpuset", "memory"):
        tree.write(f"cg/{name}/release_agent", "")  # which the top of a hierarchy alone has
    assert sees_part(tree) == (set() if root == "/" else {*LIMITS, "memory"})


# --- Memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_memory_limit_is_told_and_kills_warn(version: int, tree: SysfsTree) -> None:
    if version == 1:
        tree.write("proc/mounts", "")
        tree.add_mount("cgroup", "/sys/fs/cgroup", "rw,memory")
        tree.write("proc/self/cgroup", "4:memory:/job")
        tree.write("sys/fs/cgroup/memory.limit_in_bytes", 9223372036854771712)
    limit, events = (
        ("memory_limit_in_bytes", "memory_oom_control")
        if version == 1
        else ("memory_max", "memory_events")
    )
    put_in_cgroup(tree, **{limit: 2 << 30, events: "oom 3\noom_kill 0"})
    memory = check(tree, "memory")
    assert memory.status == Status.ok
    assert memory.found == "16 GiB in the machine; the cgroup's limit is 2 GiB"
    put_in_cgroup(tree, **{events: "oom 3\noom_kill 2"})
    memory = check(tree, "memory")
    assert memory.status == Status.warn
    assert memory.data["oom_kills"] == 2


@pytest.mark.parametrize(
    ("stalled_usec", "status"), [(0, Status.ok), (50_000, Status.ok), (500_000, Status.warn)]
)
def test_memory_high_is_told_and_stalls_warn(
    stalled_usec: int, status: Status, tree: SysfsTree
) -> None:
    pressure = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled_usec}\nfull total=0"
    put_in_cgroup(
        tree,
        memory_max=2 << 30,
        memory_high=1 << 30,
        memory_pressure=pressure,
        cpu_stat="usage_usec 9500000",
    )
    memory = check(tree, "memory")
    assert memory.status == status
    assert "limit is 2 GiB; throttled above 1 GiB (memory.high)" in memory.found
    assert (memory.data["high_bytes"], memory.data["stall_seconds"]) == (
        1 << 30,
        stalled_usec / 1e6,
    )
    assert ("for 0.5 s, against 9.5 s" in memory.found) == (status == Status.warn)


@pytest.mark.parametrize(
    ("topology", "total", "free", "advice"),
    [
        (TWO_NODES, 64 << 30, 0, "du -ah /dev/shm"),
        (TWO_NODES, 64 << 20, 64 << 20, "--shm-size"),
        (TWO_NODES, 64 << 30, 2 << 30, ""),
        (SMT, 64 << 20, 0, ""),
    ],
)
def test_shared_memory_without_room_for_copies_warns(
    topology: Topology, total: int, free: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (total, total - free, free))
    memory = limits.shared_memory(Host(Path("/"), topology, topology.cores, None, None))
    assert advice in memory.advice
    assert (memory.status == Status.warn) == bool(advice)


def test_kills_in_a_group_without_a_limit_are_not_ours(tree: SysfsTree) -> None:
    put_in_cgroup(tree, memory_max="max", memory_events="oom_kill 7")
    assert check(tree, "memory").status == Status.ok


def test_memory_of_other_nodes_alone_warns(tree: SysfsTree) -> None:
    two = another(tree, TWO_NODES)
    two.write("proc/self/status", "Mems_allowed_list:\t0")
    nodes = check(two, "memory_nodes")
    assert nodes.status == Status.warn
    assert "--cpuset-mems=0-1" in nodes.advice
    assert check(two, "memory_nodes", {0, 1, 2, 3}).status == Status.ok
    two.write("sys/devices/system/node/has_memory", "0")  # node 1 has none to give
    assert check(two, "memory_nodes").status == Status.ok


@pytest.mark.parametrize(
    ("topology", "value", "status"),
    [
        (TWO_NODES, "1", Status.warn),
        (TWO_NODES, "0", Status.ok),
        (TWO_NODES, "2", Status.ok),
        (TWO_NODES, "", Status.unknown),
        (SMT, "1", Status.ok),
    ],
)
def test_numa_balancing_warns_where_there_are_nodes_to_balance(
    topology: Topology, value: str, status: Status, tree: SysfsTree
) -> None:
    machine = another(tree, topology)
    machine.write("proc/sys/kernel/numa_balancing", value)
    assert check(machine, "numa_balancing").status == status


def test_numa_tells_the_nodes_of_the_cores_in_use(tree: SysfsTree) -> None:
    two = another(tree, TWO_NODES)
    assert check(two, "numa").data == {"nodes": [0, 1], "used_nodes": [0, 1]}
    assert check(two, "numa", {5}).data == {"nodes": [0, 1], "used_nodes": [1]}


# --- Cores ------------------------------------------------------------------------------------


def test_one_thread_of_each_core_warns_and_names_the_others(tree: SysfsTree) -> None:
    machine = another(tree, SMT)
    smt = check(machine, "smt", set(range(8)))
    assert smt.status == Status.warn
    assert smt.data["sibling_cpus_left_out"] == list(range(8, 16))
    assert "--cpuset-cpus=0-15" in smt.advice


def test_isolated_siblings_are_no_warning(tree: SysfsTree) -> None:
    machine = another(tree, SMT)
    machine.write("sys/devices/system/cpu/isolated", "8-15")
    assert check(machine, "smt", set(range(8))).status == Status.ok
    assert check(machine, "affinity", set(range(8))).status == Status.ok


def test_whole_cores_are_no_warning_and_tell_how_many_there_are(tree: SysfsTree) -> None:
    machine = another(tree, SMT)
    smt = check(machine, "smt", {0, 1, 8, 9})
    assert smt.status == Status.ok
    assert "4 usable CPUs make 2 cores" in smt.found
    assert check(machine, "smt", {0, 8}).found.endswith(" make 1 core")


def test_virtual_machine_may_hide_siblings(tree: SysfsTree) -> None:
    assert check(tree, "smt").meaning == ""
    tree.write("proc/cpuinfo", "processor : 0\nflags : hypervisor avx2")
    assert "virtual machine" in check(tree, "smt").meaning


def test_hybrid_cpu_warns_with_the_number_of_fast_cores(tree: SysfsTree) -> None:
    cores = Topology.synthetic(packages=1, cores_per_l3=6).cores
    hybrid = Topology(tuple(dataclasses.replace(core, kind=int(core.l2 < 2)) for core in cores))
    machine = another(tree, hybrid)
    kinds = check(machine, "core_kinds")
    assert kinds.status == Status.warn
    assert kinds.data["cpus_by_kind"] == {"1": [0, 1], "0": [2, 3, 4, 5]}
    assert "num_cores=2 " in kinds.advice
    assert check(machine, "core_kinds", {0, 1}).status == Status.ok
    assert check(machine, "affinity", {0, 1}).status == Status.ok  # someone meant that


# --- Advice that is followed ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """A machine and what a process gets of it."""

    root: Path
    mask: frozenset[int]
    cpuset: frozenset[int]
    quota: float | None
    memory_nodes: frozenset[int]
    isolated: frozenset[int]

    def warnings(self) -> dict[str, str]:
        """Name -> advice."""
        tree = SysfsTree(self.root)
        tree.write("proc/mounts", "none /sys/fs/cgroup cgroup2 rw 0 0")
        tree.write("proc/self/cgroup", "0::/job")
        tree.write("proc/self/status", f"Mems_allowed_list:\t{format_cpu_list(self.memory_nodes)}")
        tree.write("sys/devices/system/cpu/isolated", format_cpu_list(self.isolated))
        tree.write("sys/fs/cgroup/job/cpuset.cpus.effective", format_cpu_list(self.cpuset))
        quota = "max" if self.quota is None else round(self.quota * 100_000)
        tree.write("sys/fs/cgroup/job/cpu.max", f"{quota} 100000")
        diagnosis = check_hardware(self.root, self.mask)
        return {check.name: check.advice for check in diagnosis.warnings}

    def follow(self, advice: str) -> Iterator[Setting]:
        """After what an advice says about CPUs: by docker, by taskset."""
        change = functools.partial(dataclasses.replace, self)
        if match := re.search(r"--cpuset-cpus=([\d,-]*\d)", advice):
            cpus = parse_cpu_list(match[1])
            quota = re.search(r"--cpus=(\d+)", advice)
            yield change(mask=cpus, cpuset=cpus, quota=float(quota[1]) if quota else self.quota)
            if "or taskset -c with the same list" in advice and cpus <= self.cpuset:
                yield change(mask=cpus)
        if match := re.search(r"taskset -acp ([\d,-]+) PID", advice):
            cpus = parse_cpu_list(match[1])
            assert cpus <= self.cpuset
            yield change(mask=cpus)


@pytest.mark.field
@settings(max_examples=100, deadline=None)
@given(topology=random_topologies(), data=st.data())
def test_advice_that_is_followed_ends_its_warning_and_begins_no_other(
    topology: Topology, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cpus, nodes = st.sampled_from(topology.cpus), st.sampled_from(topology.numa_nodes)
    cpuset = data.draw(st.just(frozenset(topology.cpus)) | st.frozensets(cpus, min_size=1))
    machine = dataclasses.replace(topology, cpu_quota=None)
    before = Setting(
        write_machine(tmp_path_factory.mktemp("machine"), machine).root,
        data.draw(st.just(cpuset) | st.frozensets(st.sampled_from(sorted(cpuset)), min_size=1)),
        cpuset,
        topology.cpu_quota,
        data.draw(st.just(frozenset(topology.numa_nodes)) | st.frozensets(nodes, min_size=1)),
        data.draw(st.just(frozenset()) | st.frozensets(cpus)),
    )
    warnings = before.warnings()
    for name in warnings.keys() & {"affinity", "cpu_quota", "smt"}:
        settings_after = tuple(before.follow(warnings[name]))
        assert settings_after
        for after in settings_after:
            left = after.warnings().keys()
            assert name not in left
            assert left <= warnings.keys()
    if match := re.match(r"num_cores=(\d+) ", warnings.get("core_kinds", "")):
        usable = Topology.from_sysfs(before.root, before.mask)
        streams = partition(usable, num_cores=int(match[1])).streams
        assert len({core.kind for stream in streams for core in stream.cores}) == 1


# --- Kernel and hypervisor --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "governor", "preference", "status"),
    [
        ("acpi-cpufreq", "powersave", None, Status.warn),
        ("intel_cpufreq", "powersave", None, Status.warn),
        ("intel_pstate", "powersave", "balance_performance", Status.ok),
        ("intel_pstate", "powersave", None, Status.ok),
        ("intel_pstate", "powersave", "power", Status.warn),
        ("amd-pstate-epp", "powersave", "performance", Status.ok),
        ("amd-pstate", "powersave", None, Status.warn),
        ("acpi-cpufreq", "schedutil", None, Status.ok),
        ("acpi-cpufreq", "performance", None, Status.ok),
    ],
)
def test_powersave_warns_where_it_is_what_it_sounds_like(
    driver: str, governor: str, preference: str | None, status: Status, tree: SysfsTree
) -> None:
    machine = another(tree, SMT)
    machine.add_frequency(range(16), driver, governor, preference)
    assert check(machine, "governor").status == status


@pytest.mark.parametrize(
    ("governor", "cap", "fixed", "status", "told"),
    [
        ("performance", 800_000, None, Status.warn, "CPUs 0-15 are capped at 0.8 of 3.5"),
        ("performance", 3_400_000, None, Status.ok, ""),
        ("schedutil", 800_000, "<unsupported>", Status.warn, "0.8 of 3.5 GHz"),
        ("userspace", 3_500_000, 1_200_000, Status.warn, "are fixed at 1.2 of 3.5 GHz"),
        ("userspace", 3_500_000, 3_500_000, Status.ok, "frequency is fixed"),
        ("userspace", None, None, Status.ok, "frequency is fixed"),
        ("userspace", 800_000, 800_000, Status.warn, "0-15 are capped at 0.8 of 3.5 GHz"),
    ],
)
def test_frequency_that_is_kept_low_warns(
    governor: str, cap: int | None, fixed: object, status: Status, told: str, tree: SysfsTree
) -> None:
    machine = another(tree, SMT)
    machine.add_frequency(range(16), "acpi-cpufreq", governor)
    for cpu in range(16):
        machine.write_cpu_file(cpu, "cpufreq/cpuinfo_max_freq", 3_500_000)
        machine.write_cpu_file(cpu, "cpufreq/scaling_max_freq", cap)
        machine.write_cpu_file(cpu, "cpufreq/scaling_setspeed", fixed)
    found = check(machine, "governor")
    assert found.status == status
    assert told in found.meaning
    assert "follows the load" not in found.meaning or governor == "schedutil"
    assert ("--max 3500MHz" in found.advice) == (cap == 800_000)


def test_cores_of_several_frequencies_are_one_line(tree: SysfsTree) -> None:
    machine = another(tree, SMT)
    machine.add_frequency(range(16), "intel_pstate", "performance")
    for cpu in range(16):  # favoured cores
        machine.write_cpu_file(cpu, "cpufreq/cpuinfo_max_freq", 5_000_000 + cpu // 8 * 200_000)
    assert check(machine, "governor").found == "performance of intel_pstate"


def test_governor_of_cpus_that_may_not_be_used_does_not_matter(tree: SysfsTree) -> None:
    tree.add_frequency([7], "acpi-cpufreq", "powersave")
    governor = check(tree, "governor")
    assert governor.status == Status.warn
    assert "CPUs 7 " in governor.meaning
    assert check(tree, "governor", {0, 1}).status == Status.ok


@pytest.mark.parametrize(
    ("file", "value", "driver", "status"),
    [
        ("intel_pstate/no_turbo", 1, "intel_pstate", Status.warn),
        ("intel_pstate/no_turbo", 0, "intel_pstate", Status.ok),
        ("cpufreq/boost", 0, "acpi-cpufreq", Status.warn),
        ("cpufreq/boost", 1, "acpi-cpufreq", Status.ok),
        ("cpufreq/boost", 0, "cppc_cpufreq", Status.unknown),
    ],
)
def test_boost_warns_where_it_is_switched_off(
    file: str, value: int, driver: str, status: Status, tree: SysfsTree
) -> None:
    machine = another(tree, SMT)
    machine.add_frequency(range(16), driver, "performance")
    machine.write(f"sys/devices/system/cpu/{file}", value)
    boost = check(machine, "boost")
    assert boost.status == status
    if status == Status.warn:
        assert f"echo {1 - value} | sudo tee /sys/devices/system/cpu/{file}" in boost.advice


@pytest.mark.parametrize("mode", ["always", "madvise", "never"])
def test_huge_pages_are_told(mode: str, tree: SysfsTree) -> None:
    modes = "always madvise never".replace(mode, f"[{mode}]")
    tree.write("sys/kernel/mm/transparent_hugepage/enabled", modes)
    assert check(tree, "huge_pages").data == {"mode": mode}


def test_much_stolen_time_warns_and_idle_time_does_not_hide_it(tree: SysfsTree) -> None:
    tree.write("proc/stat", "cpu  800 0 100 99999 0 0 0 100 0 0")
    steal = check(tree, "steal")
    assert steal.status == Status.warn
    assert steal.data["share"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("pressure", "load", "status"),
    [
        ("some avg10=3.00 avg60=90.00 avg300=90.00 total=5", "1.00 9.00 9.00 1/84 3", Status.ok),
        ("some avg10=47.08 avg60=0.00 avg300=0.00 total=5", "1.00 0.00 0.00 1/84 3", Status.warn),
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=5", "7.20 0.00 0.00 1/84 3", Status.warn),
        ("some avg10=12.00 avg60=0.00 avg300=0.00 total=5", None, Status.warn),
        (None, "8.00 0.00 0.00 1/84 3", Status.warn),
        (None, "6.00 0.00 0.00 1/84 3", Status.ok),
        (None, None, Status.unknown),
    ],
)
def test_cores_that_others_keep_busy_warn(
    pressure: str | None, load: str | None, status: Status, tree: SysfsTree
) -> None:
    machine = another(tree, Topology.synthetic(packages=1, cores_per_l3=8, threads_per_core=2))
    for path, text in (("proc/pressure/cpu", pressure), ("proc/loadavg", load)):
        if text is not None:
            machine.write(path, text)
    found = check(machine, "contention")
    assert found.status == status
    assert (found.data["pressure"] is None) == (pressure is None)
    assert (found.data["load_per_core"] is None) == (load is None)


def test_load_counts_per_core_of_the_whole_machine(tree: SysfsTree) -> None:
    assert check(tree, "contention", {0}).data["load_per_core"] == pytest.approx(1.2 / 8)


# --- This process -----------------------------------------------------------------------------


def test_this_machine_knows_its_packages_and_its_library() -> None:
    diagnosis = check_hardware()
    assert diagnosis["packages"].data["versions"]["deepsched"] == deepsched.__version__
    assert Path(diagnosis["onnxruntime"].data["path"]).is_file()
    assert set(diagnosis["affinity"].data["cpus"]) == os.sched_getaffinity(0)
    assert diagnosis["shared_memory"].status != Status.unknown or not Path("/dev/shm").exists()


def test_missing_library_warns_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> dict[str, str]:
        raise OrtImportError(f"no kernels; {versions.INSTALL_HINT}")

    monkeypatch.setattr(versions, "describe_library", find_none)
    library = check_hardware()["onnxruntime"]
    assert (library.status, library.found) == (Status.warn, "no kernels")
    assert "pip install" in library.advice


def test_onnxruntime_under_another_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "onnxruntime_gpu-1.22.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.22.0\n")
    (info / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    packages = versions.installed_packages()
    assert packages["onnxruntime-gpu"] == "1.22.0"
    assert "onnxruntime" not in packages
    monkeypatch.setattr(sys, "path", [])
    assert versions.installed_packages()["onnxruntime"] is None


def test_two_packages_in_one_folder_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("gpu", "onnxruntime"), ("extensions", "onnxruntime_extensions")):
        info = tmp_path / f"onnxruntime_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: onnxruntime-{name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{file}/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    library = check_hardware()["onnxruntime"]
    assert library.status == Status.warn
    assert "onnxruntime-gpu" in library.advice
    assert "extensions" not in library.advice


def test_import_is_spared_what_only_the_checks_need() -> None:
    code = "import sys, deepsched; print({'rich', 'threadpoolctl'} & set(sys.modules))"
    assert run_python(code) == "set()\n"


@pytest.mark.skipif(ctypes.util.find_library("gomp") is None, reason="no libgomp on this machine")
@pytest.mark.parametrize(("num_threads", "status"), [("4", "warn"), ("1", "ok")])
def test_openmp_pool_of_several_threads_warns(num_threads: str, status: str) -> None:
    code = (
        "import ctypes, deepsched; ctypes.CDLL('libgomp.so.1');"
        "print(deepsched.check_hardware()['thread_pools'].status)"
    )
    assert run_python(code, OMP_NUM_THREADS=num_threads, OPENBLAS_NUM_THREADS="1") == f"{status}\n"


def test_blas_pool_of_numpy_alone_is_no_warning() -> None:
    code = "import deepsched; print(deepsched.check_hardware()['thread_pools'].status)"
    assert run_python(code, OPENBLAS_NUM_THREADS="4") == "ok\n"


# --- Whatever the files hold ------------------------------------------------------------------

_FILES = (
    "proc/cpuinfo",
    "proc/stat",
    "proc/pressure/cpu",
    "proc/loadavg",
    "proc/meminfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/mounts",
    "proc/sys/kernel/numa_balancing",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/devices/system/cpu/isolated",
    "sys/devices/system/node/has_memory",
    "sys/devices/system/cpu/cpufreq/boost",
    "sys/devices/system/cpu/intel_pstate/no_turbo",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference",
    "sys/fs/cgroup/job/cpu.max",
    "sys/fs/cgroup/job/cpu.stat",
    "sys/fs/cgroup/job/memory.max",
    "sys/fs/cgroup/job/memory.events",
    "sys/fs/cgroup/job/memory.high",
    "sys/fs/cgroup/job/memory.pressure",
    "proc/filesystems",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_setspeed",
)
_WORDS = st.sampled_from(
    [
        "flags",
        "processor",
        ":",
        "cpu",
        "max",
        "MemTotal:",
        "kB",
        "oom_kill",
        "[",
        "always]",
        "0",
        "-1",
        "3",
        "²",
        "1e9",
        "nr_periods",
        "some avg10=",
        "9.00",
        "throttled_usec",
        "Mems_allowed_list:",
        "\n",
        "\t",
        " ",
        " - cgroup2",
        " - cgroup none cpu",
        "none",
        "/sys/fs/cgroup",
        "\\000",
        "\0",
        "0::/",
    ]
)
_GARBAGE = st.binary(max_size=40) | st.lists(_WORDS).map(lambda words: "".join(words).encode())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> SysfsTree:
    return write_machine(tmp_path_factory.mktemp("damaged"), TWO_NODES)


@pytest.mark.field
@settings(max_examples=100, deadline=None)
@given(contents=st.dictionaries(st.sampled_from(_FILES), _GARBAGE, min_size=1))
def test_damaged_files_never_raise(contents: dict[str, bytes], damaged: SysfsTree) -> None:
    for path in _FILES:
        damaged.write(path, "")
        (damaged.root / path).write_bytes(contents.get(path, b""))
    if "proc/mounts" not in contents:
        damaged.add_mount("cgroup2", "/sys/fs/cgroup")
    diagnosis = check_hardware(damaged.root)
    assert json.loads(json.dumps(diagnosis.to_dict())) == diagnosis.to_dict()
    assert str(diagnosis)


@pytest.mark.parametrize(
    "line",
    [
        "1 2 3 - cgroup2 none rw",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 none",
        r"30 23 0:26 / /sys\000/fs rw - cgroup2 none rw",
    ],
)
def test_mount_table_that_is_cut_or_odd_is_no_error(line: str, tree: SysfsTree) -> None:
    tree.write("proc/self/mountinfo", line)
    tree.write("proc/self/cgroup", "0::/a\0b")
    assert check_hardware(tree.root)["affinity"].status == Status.unknown


def test_files_that_are_missing_or_folders_are_unknown(tree: SysfsTree) -> None:
    bare = another(tree, SMT)
    for path in ("proc/stat", "proc/meminfo", "proc/cpuinfo"):
        (bare.root / path).mkdir(parents=True)
    for name in (
        "instructions_fp32",
        "instructions_int8",
        "instructions_fp16",
        "instructions_bf16",
        "memory",
        "memory_nodes",
        "huge_pages",
        "governor",
        "boost",
        "steal",
        "contention",
    ):
        assert check(bare, name).status == Status.unknown


@settings(max_examples=50, deadline=None)
@given(topology=random_topologies(), data=st.data())
def test_every_machine_and_mask_is_told_something(
    topology: Topology, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = write_machine(tmp_path_factory.mktemp("machine"), topology)
    mask = data.draw(st.sets(st.sampled_from(topology.cpus), min_size=1))
    diagnosis = check_hardware(machine.root, mask)
    assert all(check.found for check in diagnosis.checks)
    left_out = set(diagnosis["affinity"].data["left_out_cpus"])
    assert left_out == set(topology.cpus) - mask


# --- Diagnosis and command line ---------------------------------------------------------------


def test_diagnosis_is_found_by_name_and_reads_as_text(tree: SysfsTree) -> None:
    diagnosis = check_hardware(tree.root, {0})
    assert "affinity: warn: 1 of the 8 CPUs" in str(diagnosis)
    with pytest.raises(KeyError):
        diagnosis["no_such_check"]
    assert isinstance(diagnosis, Diagnosis)


def test_command_line_is_silent_about_health_where_asked_and_returns_0(
    tree: SysfsTree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--sysfs", str(tree.root)]) == 0
    out = capsys.readouterr().out
    names = [check.name for check in check_hardware(tree.root).checks]
    assert all(name in out for name in names)
    assert main(["doctor", "--sysfs", str(tree.root), "-q"]) == 0
    out = capsys.readouterr().out
    assert not any(name in out for name in names)
    assert "0 warn" in out


def test_command_line_returns_1_for_a_warning_and_says_what_to_do(
    tree: SysfsTree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.add_frequency(range(8), "acpi-cpufreq", "powersave")
    assert main(["doctor", "--sysfs", str(tree.root), "-q"]) == 1
    out = capsys.readouterr().out
    assert "→ cpupower frequency-set -g performance" in out


def test_command_line_prints_json(tree: SysfsTree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.add_frequency(range(8), "acpi-cpufreq", "powersave")
    assert main(["doctor", "--sysfs", str(tree.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == check_hardware(tree.root).to_dict()


def test_machine_that_cannot_be_read_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sysfs", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    with pytest.raises(TopologyError):
        check_hardware("/nowhere")


def test_help_defines_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "-h"])
    text = capsys.readouterr().out
    for check in check_hardware().checks:
        assert check.name.removeprefix("instructions") in text
    assert max(map(len, text.splitlines())) <= 80


def test_output_fits_the_terminal(
    tree: SysfsTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(latency, "_BETWEEN_LOOKS_S", 0.0)
    main(["doctor"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
