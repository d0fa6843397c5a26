"""Reads each online CPU from /sys and /proc.

The files are documented in the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu,
Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/ABI/stable/sysfs-devices-node and
Documentation/admin-guide/cputopology.rst. Any of them may be missing: old kernels lack some,
virtual machines and containers others.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepsched.errors import TopologyError
from deepsched.shortages import check_file_limit

MAX_CPUS = 1 << 20
"""More than Linux can have."""

CpuSet = frozenset[int]
"""OS numbers of CPUs. Also empty if unknown."""

_NONE: CpuSet = frozenset()

CpuInfo = Mapping[int, Mapping[str, str]]
"""proc/cpuinfo: the fields of each CPU, by its number."""

_SAME_KIND = 1.15
"""Cores are of one kind as long as the next more capable one is at most 15% above.

Wide enough for favoured cores, whose maximum frequency is a few percent above their siblings'
(Turbo Boost Max 3.0: 5.2 and 5.0 GHz; Arm: capacities 1024 and 997), narrow enough for two
designs of core (1.9 and 1.4 GHz; capacities 997 and 731).
"""


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """One online CPU, that is one hardware thread. Sets hold online CPUs only."""

    cpu: int
    core: CpuSet
    """The hardware threads of its core, itself included."""
    package: int | None
    numa_node: int | None
    kind: int
    """Kind of its core, 0 for the least capable one of the machine."""
    package_cpus: CpuSet
    die: CpuSet
    cluster: CpuSet
    l2: CpuSet
    """The CPUs that share its L2 data cache."""
    l3: CpuSet


def read_cpus(root: Path) -> list[CpuFacts]:
    """The online CPUs of the machine whose /sys and /proc are in `root`, by OS number.

    Raises:
        TopologyError: the folder does not exist or has no CPUs, or a file in it is malformed.
    """
    if not os.path.isdir(root):
        raise TopologyError(f"cannot read a machine from {root}: no such folder")
    online = _online_cpus(root)
    # proc/cpuinfo is slow (the kernel queries every CPU): read only if sysfs is incomplete.
    has_sysfs = all((root / _CPU / f"cpu{cpu}/topology").is_dir() for cpu in online)
    cpuinfo = {} if online and has_sysfs else read_cpuinfo(root)
    online = online or frozenset(cpuinfo)
    if not online:
        raise TopologyError(
            f"cannot read a machine from {root}: no CPUs; looked for {_CPU}/online, "
            f"{_CPU}/cpu<N> and proc/cpuinfo"
        )
    nodes = _read_nodes(root, online)
    kinds = _read_kinds(root, online)
    return [
        _read_cpu(root / _CPU / f"cpu{cpu}", cpu, online, cpuinfo, nodes.get(cpu), kinds[cpu])
        for cpu in sorted(online)
    ]


def _read_cpu(
    folder: Path,
    cpu: int,
    online: CpuSet,
    cpuinfo: CpuInfo,
    numa_node: int | None,
    kind: int,
) -> CpuFacts:
    topology = folder / "topology"
    if topology.is_dir():
        core, package = _own_core(topology), read_int(topology / "physical_package_id")
    else:  # old kernels, some containers
        core, package = _core_by_cpuinfo(cpu, cpuinfo)
    core = core & online | {cpu}
    caches = _read_caches(folder / "cache", core)
    return CpuFacts(
        cpu=cpu,
        core=core,
        # The kernel writes -1 if the firmware has no package id.
        package=package if package is not None and package >= 0 else None,
        numa_node=numa_node,
        kind=kind,
        package_cpus=_read_siblings(topology, "package_cpus", "core_siblings") & online,
        die=_read_siblings(topology, "die_cpus") & online,
        cluster=_read_siblings(topology, "cluster_cpus") & online,
        l2=caches.get(2, _NONE) & online,
        l3=caches.get(3, _NONE) & online,
    )


# --- Folders and files ------------------------------------------------------------------------

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"


def read_text(path: Path) -> str | None:
    """The file's text, stripped; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip(" \t\n\0")
    except OSError as error:  # missing, or an attribute whose read fails
        check_file_limit(error)
        return None


def read_cpu_list(folder: Path, *names: str) -> CpuSet:
    """The CPUs in the first of these files that has any; empty if none has.

    Raises:
        TopologyError: a file is not a CPU list such as "0-3,8".
    """
    return _read_cpu_set(folder, names, parse_cpu_list)


def _read_cpu_mask(folder: Path, *names: str) -> CpuSet:
    return _read_cpu_set(folder, names, _parse_mask)


def _read_siblings(topology: Path, *names: str) -> CpuSet:
    """A set in topology/, by its name since Linux 5.3 or its older one.

    Masks are read before lists, here and below: until Linux 5.15 the kernel truncated files at one
    page, which a list of many CPUs may exceed, but not a mask.
    """
    return _read_cpu_mask(topology, *names) or read_cpu_list(
        topology, *(f"{name}_list" for name in names)
    )


def _read_cpu_set(folder: Path, names: Iterable[str], parse: Callable[[str], CpuSet]) -> CpuSet:
    for name in names:
        text = read_text(folder / name)
        try:
            cpus = parse(text or "")
        except ValueError:
            raise TopologyError(f"{folder / name} must hold a set of CPUs, got {text!r}") from None
        if cpus:
            return cpus
    return _NONE


def parse_cpu_list(text: str) -> CpuSet:
    """Parses the kernel's list format, such as "0-3,8".

    Raises:
        ValueError: `text` is not in that format.

    Example:
        >>> sorted(parse_cpu_list("0-3,8"))
        [0, 1, 2, 3, 8]
    """
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        end = int(last or first) + 1
        if end > MAX_CPUS:
            raise ValueError(f"no machine has a CPU {end - 1}")
        cpus.update(range(int(first), end))
    return frozenset(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Formats CPUs in the kernel's list format; the inverse of `parse_cpu_list`.

    Example:
        >>> format_cpu_list([8, 0, 1, 2, 3])
        '0-3,8'
    """
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)


def _parse_mask(text: str) -> CpuSet:
    """Hex words of 32 bits, the most significant first: "00000000,00000101" is CPUs 0 and 8."""
    bits = int("".join(word.rjust(8, "0") for word in text.split(",")), 16) if text else 0
    if bits.bit_length() > MAX_CPUS:
        raise ValueError(f"no machine has a CPU {bits.bit_length() - 1}")
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def read_int(path: Path) -> int | None:
    """The number in the file; None if it cannot be read or is not a number."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def decimal(text: str) -> int | None:
    """A number of 64 bits at most, without a sign; None for anything else.

    >>> decimal("100000"), decimal("max")
    (100000, None)
    """
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else None


# --- CPUs -------------------------------------------------------------------------------------


def _online_cpus(root: Path) -> CpuSet:
    folder = root / _CPU
    present = _numbered(folder, "cpu")
    online = read_cpu_list(folder, "online")
    if online:
        return online & present if present else online
    # Old kernels have no such list. Some of them remove topology/ of an offline CPU; a CPU that
    # cannot be taken offline has no "online" file.
    has_topology = frozenset(cpu for cpu in present if (folder / f"cpu{cpu}/topology").is_dir())
    return frozenset(
        cpu for cpu in has_topology or present if read_text(folder / f"cpu{cpu}/online") != "0"
    )


def offline_cpus(root: Path) -> CpuSet:
    """The present CPUs that are offline; the kernel does not expose their cores.

    Raises:
        TopologyError: a file is malformed.
    """
    folder = root / _CPU
    return (read_cpu_list(folder, "present") or _numbered(folder, "cpu")) - _online_cpus(root)


def _numbered(folder: Path, prefix: str) -> CpuSet:
    """The numbers N of a folder's entries named "<prefix><N>"."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        check_file_limit(error)
        return _NONE
    matches = (re.fullmatch(rf"{prefix}(\d+)", name) for name in names)
    return frozenset(int(match[1]) for match in matches if match)


# --- Cores ------------------------------------------------------------------------------------


def _own_core(topology: Path) -> CpuSet:
    """The hardware threads of the core.

    AMD's families 15h and 16h pair two cores in a "compute unit", and the kernel calls the pair
    siblings (Documentation/arch/x86/topology.rst); their core_id tells them apart.
    """
    core_id = read_int(topology / "core_id")
    return frozenset(
        sibling
        for sibling in _read_siblings(topology, "core_cpus", "thread_siblings")
        if read_int(topology / f"../../cpu{sibling}/topology/core_id") == core_id
    )


def read_cpuinfo(root: Path) -> CpuInfo:
    """The fields of each CPU in proc/cpuinfo; empty if it cannot be read."""
    blocks = (read_text(root / "proc/cpuinfo") or "").split("\n\n")
    cpus = {}
    for block in blocks:
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        number = decimal(fields.get("processor", ""))
        if number is not None:
            cpus[number] = fields
    return cpus


def _core_by_cpuinfo(cpu: int, cpuinfo: CpuInfo) -> tuple[CpuSet, int | None]:
    """The core's CPUs and its package; only x86 and ia64 have "physical id" and "core id"."""

    def place(fields: Mapping[str, str]) -> tuple[str | None, str | None]:
        return fields.get("physical id"), fields.get("core id")

    package, core_id = place(cpuinfo.get(cpu, {}))
    number = decimal(package or "")
    if number is None or core_id is None:
        return frozenset({cpu}), number
    same = (other for other, fields in cpuinfo.items() if place(fields) == (package, core_id))
    return frozenset(same), number


# --- Caches and NUMA nodes --------------------------------------------------------------------


def _read_caches(folder: Path, core: CpuSet) -> dict[int, CpuSet]:
    """Level -> the CPUs that share this CPU's data cache of that level."""
    caches: dict[int, CpuSet] = {}
    for index in sorted(_numbered(folder, "index")):
        cache = folder / f"index{index}"
        level = read_int(cache / "level")
        if level in (2, 3) and read_text(cache / "type") != "Instruction":
            # On ia64 the set is empty for caches that are private to one core.
            caches[level] = (
                _read_cpu_mask(cache, "shared_cpu_map")
                or read_cpu_list(cache, "shared_cpu_list")
                or core
            )
    return caches


def _read_nodes(root: Path, online: CpuSet) -> dict[int, int]:
    """CPU -> its NUMA node. CPUs of nodes whose memory is offline or missing are omitted."""
    folder = root / _NODE
    nodes = _numbered(folder, "node")
    nodes &= read_cpu_list(folder, "online") or nodes
    if not nodes:  # a kernel without NUMA: all memory is in node 0
        return dict.fromkeys(online, 0)
    owner: dict[int, int] = {}
    for node in sorted(nodes):
        cpus = _read_cpu_mask(folder / f"node{node}", "cpumap") or read_cpu_list(
            folder / f"node{node}", "cpulist"
        )
        # A CPU is in one node. With broken firmware some kernels list all CPUs in every node: then
        # the nodes do not distinguish CPUs, and the first one is taken for all.
        if owner.keys().isdisjoint(cpus):
            owner.update(dict.fromkeys(cpus, node))
    return owner


# --- Kinds of core ----------------------------------------------------------------------------


def _read_kinds(root: Path, online: CpuSet) -> dict[int, int]:
    """CPU -> kind of its core, 0 for the least capable.

    From the first source that distinguishes kinds:

    1. Intel's hybrid machines have a performance monitoring unit per type of core, whose folder
       lists the type's CPUs (tools/perf/Documentation/intel-hybrid.txt).
    2. cpu_capacity: performance relative to the fastest core, from design and frequency
       (Documentation/scheduler/sched-capacity.rst). Arm and RISC-V; all 1024 on most x86.
    3. cpufreq/base_frequency: the sustained frequency (Documentation/admin-guide/pm/intel_pstate).
    4. cpufreq/cpuinfo_max_freq.

    A new kind begins where the next higher number is more than 15% above (`_SAME_KIND`).
    """
    by_type = [
        read_cpu_list(root / "sys/devices" / pmu, "cpus") & online
        for pmu in ("cpu_lowpower", "cpu_atom", "cpu_core")
    ]
    by_type = [cpus for cpus in by_type if cpus]
    if len(by_type) > 1 and frozenset().union(*by_type) == online:
        return {cpu: kind for kind, cpus in enumerate(by_type) for cpu in cpus}
    frequency = frequency_folders(root, online)
    for files in (
        {cpu: root / _CPU / f"cpu{cpu}/cpu_capacity" for cpu in online},
        {cpu: folder / "base_frequency" for cpu, folder in frequency.items()},
        {cpu: folder / "cpuinfo_max_freq" for cpu, folder in frequency.items()},
    ):
        kinds = _split_kinds({cpu: read_int(path) or 0 for cpu, path in files.items()})
        if any(kinds.values()):
            return kinds
    return dict.fromkeys(online, 0)


def frequency_folders(root: Path, online: CpuSet) -> dict[int, Path]:
    """CPU -> the folder of its cpufreq policy.

    cpu<N>/cpufreq is a link to it, which a capture may lack: hence related_cpus as well.
    """
    folders = {cpu: root / _CPU / f"cpu{cpu}/cpufreq" for cpu in online}
    for number in _numbered(root / _CPU / "cpufreq", "policy"):
        policy = root / _CPU / f"cpufreq/policy{number}"
        cpus = map(decimal, (read_text(policy / "related_cpus") or "").split())
        folders.update((cpu, policy) for cpu in cpus if cpu is not None and cpu in online)
    return folders


def _split_kinds(capability: Mapping[int, int]) -> dict[int, int]:
    """Kinds by a number; a single kind if it is unknown (0) for any CPU."""
    values = sorted(set(capability.values()))
    if values[0] == 0:
        return dict.fromkeys(capability, 0)
    kind_of = {values[0]: 0}
    for lower, value in itertools.pairwise(values):
        kind_of[value] = kind_of[lower] + (value > lower * _SAME_KIND)
    return {cpu: kind_of[value] for cpu, value in capability.items()}
