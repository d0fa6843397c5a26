"""Reading CPUs, caches and NUMA nodes from /sys and /proc, or from a captured tree.

Documentation/ABI/testing/sysfs-devices-system-cpu and .../stable/sysfs-devices-node of the kernel
say what the files mean. Old kernels have only the hex maps, not the lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

Cpus = frozenset[int]


def read_text(path: Path) -> str | None:
    """The stripped text of a file; None where it is not there or cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def parse_cpulist(text: str) -> Cpus:
    """Reads the kernel's list format.

    >>> sorted(parse_cpulist("0-3,8,10-11"))
    [0, 1, 2, 3, 8, 10, 11]
    """
    cpus: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def parse_cpumap(text: str) -> Cpus:
    """Reads the kernel's mask format: hex words of 32 bits, the highest first.

    >>> sorted(parse_cpumap("00000001,0000000f"))
    [0, 1, 2, 3, 32]
    """
    try:
        bits = int(text.replace(",", ""), 16)
    except ValueError:
        return frozenset()
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def read_cpus(folder: Path, *names: str) -> Cpus:
    """The CPUs in the first of these files that names any; lists are told by their names.

    Give the map before the list: old kernels have only the maps, and some of Linux 2.6 wrote one
    CPU into every shared_cpu_list.
    """
    for name in names:
        text = read_text(folder / name)
        is_list = "list" in name or name in ("online", "cpus")
        cpus = (parse_cpulist if is_list else parse_cpumap)(text) if text else frozenset()
        if cpus:
            return cpus
    return frozenset()


def read_number(path: Path) -> int | None:
    """The integer (decimal, or hex with 0x) in a file; None where there is none."""
    try:
        return int(read_text(path) or "", 0)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """What sysfs says of one CPU; sets of CPUs may name offline ones."""

    siblings: Cpus
    """The hardware threads of its core, itself included."""
    package: int | None
    caches: dict[int, Cpus]
    """By level, who shares the data or unified cache."""
    capacity: int | None
    """Relative speed: the kernel's cpu_capacity, else the highest frequency in kHz."""
    model: int | None
    """Arm's main id register, which tells kinds of core apart."""


def online_cpus(root: Path) -> Cpus:
    """The CPUs that run; a kernel without hotplug has no `online` files."""
    cpu_root = root / "sys/devices/system/cpu"
    listed = read_cpus(cpu_root, "online")
    folders = {int(path.name[3:]) for path in cpu_root.glob("cpu[0-9]*") if path.name[3:].isdigit()}
    known = folders or set(_read_cpuinfo(root))
    return frozenset(
        cpu
        for cpu in known
        if (not listed or cpu in listed) and read_text(cpu_root / f"cpu{cpu}/online") != "0"
    )


def read_facts(root: Path, cpus: Cpus) -> dict[int, CpuFacts]:
    """What sysfs says of each of `cpus`; /proc/cpuinfo fills in where it has no topology."""
    cpu_root = root / "sys/devices/system/cpu"
    cpuinfo = {} if any(cpu_root.glob("cpu[0-9]*/topology")) else _read_cpuinfo(root)
    frequencies = _max_frequencies(cpu_root)
    has_compute_units = _has_compute_units(root)
    facts = {}

    def core_id(cpu: int) -> int | None:
        return read_number(cpu_root / f"cpu{cpu}" / "topology/core_id")

    for cpu in cpus:
        folder = cpu_root / f"cpu{cpu}"
        topology = folder / "topology"
        siblings = read_cpus(
            topology, "core_cpus", "thread_siblings", "core_cpus_list", "thread_siblings_list"
        )
        if has_compute_units:
            siblings = frozenset(other for other in siblings if core_id(other) == core_id(cpu))
        package = read_number(topology / "physical_package_id")
        if cpu in cpuinfo:
            package, core = cpuinfo[cpu]
            same = {other for other, place in cpuinfo.items() if place == (package, core)}
            siblings = frozenset(same) if core is not None else frozenset()
        capacity = read_number(folder / "cpu_capacity")
        facts[cpu] = CpuFacts(
            siblings=siblings | {cpu},
            package=package if package is not None and package >= 0 else None,
            caches=_read_caches(folder / "cache", cpu),
            capacity=capacity if capacity is not None else frequencies.get(cpu),
            model=read_number(folder / "regs/identification/midr_el1"),
        )
    return facts


def _has_compute_units(root: Path) -> bool:
    """Whether siblings may be cores, with a core_id each: AMD's family 15h pairs two to an L2."""
    text = read_text(root / "proc/cpuinfo") or ""
    return "AuthenticAMD" in text and re.search(r"^cpu family\s*: 21$", text, re.M) is not None


def _read_caches(folder: Path, cpu: int) -> dict[int, Cpus]:
    caches = {}
    for index in folder.glob("index[0-9]*"):
        level = read_number(index / "level")
        if level is None or read_text(index / "type") == "Instruction":
            continue
        caches[level] = read_cpus(index, "shared_cpu_map", "shared_cpu_list") | {cpu}
    return caches


def _max_frequencies(cpu_root: Path) -> dict[int, int]:
    """By CPU, in kHz. Older kernels have a cpufreq folder in each CPU's, newer ones policies."""
    frequencies = {}
    for folder in [*cpu_root.glob("cpufreq/policy*"), *cpu_root.glob("cpu[0-9]*/cpufreq")]:
        highest = read_number(folder / "cpuinfo_max_freq")
        members = {int(cpu) for cpu in (read_text(folder / "related_cpus") or "").split()}
        if folder.name == "cpufreq":
            members.add(int(folder.parent.name[3:]))
        if highest is not None:
            frequencies.update(dict.fromkeys(members, highest))
    return frequencies


def _read_cpuinfo(root: Path) -> dict[int, tuple[int | None, int | None]]:
    """(physical id, core id) by processor, from /proc/cpuinfo."""
    places: dict[int, tuple[int | None, int | None]] = {}
    fields: dict[str, int] = {}
    for line in [*(read_text(root / "proc/cpuinfo") or "").splitlines(), "processor:"]:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            if "processor" in fields:
                places[fields["processor"]] = (fields.get("physical id"), fields.get("core id"))
            fields = {}
        if value.isdigit():
            fields[name] = int(value)
    return places


def numa_nodes(root: Path) -> dict[int, Cpus]:
    """The nodes that have CPUs, by number; a node whose CPUs are another's is left out.

    Some firmware reports several nodes with the same CPUs, which are then one; where it is true
    (memory of two kinds beside the same cores), the lower one is the ordinary memory.
    """
    nodes: dict[int, Cpus] = {}
    node_root = root / "sys/devices/system/node"
    online = read_cpus(node_root, "online")
    numbers = [int(path.name[4:]) for path in node_root.glob("node[0-9]*")]
    for number in sorted(numbers):
        cpus = read_cpus(node_root / f"node{number}", "cpumap", "cpulist")
        if cpus and cpus not in nodes.values() and (not online or number in online):
            nodes[number] = cpus
    return nodes


def hybrid_kinds(root: Path) -> list[Cpus]:
    """The kinds of core of an Intel hybrid processor, the least capable first: the perf counters
    of each kind are a device of their own."""
    devices = root / "sys/devices"
    names = ("cpu_lowpower", "cpu_atom", "cpu_core")
    kinds = [read_cpus(devices / name, "cpus") for name in names]
    return [cpus for cpus in kinds if cpus]
