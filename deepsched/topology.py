"""What the machine is, cut down to what this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepsched import cgroup, sysfs
from deepsched.errors import TopologyError

# Capacities closer than this are one kind of core: manufacturing favours single cores of a kind by
# some per cent of frequency, while kinds that were found differ by 20 % (Intel) to 36 % (Arm).
_KIND_GAP = 1.15


@dataclass(frozen=True, slots=True)
class Core:
    """One physical core."""

    cpus: tuple[int, ...]
    """Its hardware threads that may be used, by the OS's numbers, ascending."""
    l2: int | None = None
    """Which L2 cache; cores with the same number share it. Numbered from 0 in topology order."""
    l3: int | None = None
    """Which L3 cache, likewise. None where the machine has none, or does not tell."""
    numa_node: int | None = None
    """The OS's number of the NUMA node; None for a core without one."""
    package: int | None = None
    """The OS's number of the package (socket)."""
    kind: int = 0
    """The kind of core on a hybrid machine: 0 is the least capable, higher is more capable."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The cores that may be used, in topology order: by package, NUMA node, L3, L2, core.

    Example:
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=2, threads_per_core=2)
        >>> [core.cpus for core in machine.cores]
        [(0, 4), (1, 5), (2, 6), (3, 7)]
        >>> machine.l3_groups, machine.packages, machine.cpu_quota
        ((0, 1), (0, 1), None)
    """

    cores: tuple[Core, ...]
    cpu_quota: float | None = None
    """How many cores' worth of CPU time the cgroup grants; None for no limit."""
    is_local: bool = field(default=False, compare=False)
    """Whether it was read from this machine, for this process."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """Every hardware thread, by the OS's numbers, ascending."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def l3_groups(self) -> tuple[int, ...]:
        """The numbers of the L3 caches, in topology order."""
        return distinct(core.l3 for core in self.cores)

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """The numbers of the NUMA nodes, in topology order."""
        return distinct(core.numa_node for core in self.cores)

    @property
    def packages(self) -> tuple[int, ...]:
        """The numbers of the packages, in topology order."""
        return distinct(core.package for core in self.cores)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "cpu_quota": self.cpu_quota,
            "cores": [asdict(core) for core in self.cores],
        }

    @classmethod
    def detect(cls) -> Topology:
        """This machine, as far as this thread's affinity mask and cgroups allow it.

        Raises:
            TopologyError: /sys and /proc cannot be read.

        >>> Topology.detect().is_local
        True
        """
        return cls._read(Path("/"), os.sched_getaffinity(0), is_local=True)

    @classmethod
    def from_sysfs(
        cls, root: str | os.PathLike[str], affinity: Collection[int] | None = None
    ) -> Topology:
        """A captured machine.

        Args:
            root: the folder that holds its sys/ and proc/; mount points in its proc/mounts, of
                cgroups, are looked up inside it.
            affinity: the CPUs that the process may use; None for all that the cgroups allow.

        Raises:
            TopologyError: no CPUs are found there, or none may be used.
        """
        return cls._read(Path(root), affinity, is_local=False)

    @classmethod
    def synthetic(
        cls,
        packages: int = 2,
        nodes_per_package: int = 1,
        l3_per_node: int = 1,
        cores_per_l3: int = 8,
        threads_per_core: int = 1,
    ) -> Topology:
        """A machine made up: every package alike; each core has an L2 of its own.

        CPUs are numbered as Linux does: the first hardware thread of every core, then the second.

        Raises:
            TopologyError: a count is not a positive int.
        """
        counts = {
            "packages": packages,
            "nodes_per_package": nodes_per_package,
            "l3_per_node": l3_per_node,
            "cores_per_l3": cores_per_l3,
            "threads_per_core": threads_per_core,
        }
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise TopologyError(f"{name} must be a positive int, got {count!r}")
        num_cores = packages * nodes_per_package * l3_per_node * cores_per_l3
        cores = []
        for index in range(num_cores):
            l3 = index // cores_per_l3
            node = l3 // l3_per_node
            cpus = tuple(index + thread * num_cores for thread in range(threads_per_core))
            cores.append(Core(cpus, index, l3, node, node // nodes_per_package))
        return cls(tuple(cores))

    @classmethod
    def _read(cls, root: Path, affinity: Collection[int] | None, is_local: bool) -> Topology:
        online = sysfs.online_cpus(root)
        if not online:
            raise TopologyError(
                f"no CPUs found under {root}: expected sys/devices/system/cpu/cpu*, or "
                "proc/cpuinfo, in it"
            )
        cpuset = cgroup.allowed_cpus(root)
        usable = online
        if cpuset is not None:
            usable &= cpuset
        if affinity is not None:
            usable &= frozenset(affinity)
        if not usable:
            raise TopologyError(
                f"none of the online CPUs {sorted(online)} may be used: the cpuset has "
                f"{'all' if cpuset is None else sorted(cpuset)}, the affinity mask "
                f"{'all' if affinity is None else sorted(affinity)}"
            )
        return cls(_read_cores(root, usable), cgroup.cpu_quota(root), is_local)


def distinct(values: Iterable[int | None]) -> tuple[int, ...]:
    """Each value once, in order of first appearance; None left out."""
    return tuple(dict.fromkeys(value for value in values if value is not None))


def _read_cores(root: Path, usable: sysfs.Cpus) -> tuple[Core, ...]:
    facts = sysfs.read_facts(root, usable)
    # A kernel without NUMA has no nodes in sysfs: all memory is then one.
    nodes = sysfs.numa_nodes(root) or {0: usable}
    # A CPU of several nodes belongs to the one with the fewest CPUs: the nearest memory.
    wide_first = sorted(nodes, key=lambda node: (-len(nodes[node]), -node))
    node_of = {cpu: node for node in wide_first for cpu in nodes[node]}
    kind_of = _kinds(root, facts)
    # Levels as {cpu: number}; the caches are numbered by their first CPU until they are in order.
    levels: list[dict[int, int | None]] = [
        {cpu: facts[cpu].package for cpu in usable},
        {cpu: node_of.get(cpu) for cpu in usable},
        {cpu: _first(facts[cpu].caches.get(3)) for cpu in usable},
        {cpu: _first(facts[cpu].caches.get(2)) for cpu in usable},
    ]
    cores = sorted(_group_threads(facts), key=_order(levels))
    packages, numa, l3, l2 = levels
    numbered = []
    for cpus in cores:
        first = cpus[0]
        numbered.append(
            Core(cpus, l2[first], l3[first], numa[first], packages[first], kind_of[first])
        )
    l2_numbers = {cache: i for i, cache in enumerate(distinct(core.l2 for core in numbered))}
    l3_numbers = {cache: i for i, cache in enumerate(distinct(core.l3 for core in numbered))}
    return tuple(
        Core(
            core.cpus,
            None if core.l2 is None else l2_numbers[core.l2],
            None if core.l3 is None else l3_numbers[core.l3],
            core.numa_node,
            core.package,
            core.kind,
        )
        for core in numbered
    )


def _first(cpus: sysfs.Cpus | None) -> int | None:
    return min(cpus) if cpus else None


def _group_threads(facts: dict[int, sysfs.CpuFacts]) -> list[tuple[int, ...]]:
    """The cores, by sibling sets: (package, core_id) is not unique on every machine."""
    cores = []
    left = set(facts)
    for cpu in sorted(facts):
        if cpu in left:
            core = facts[cpu].siblings & left
            cores.append(tuple(sorted(core)))
            left -= core
    return cores


def _order(levels: list[dict[int, int | None]]) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """A sort key that keeps every level contiguous, the widest outermost.

    Usually that is package, node, L3, L2; but there are nodes of several packages, and L3s of
    several nodes.
    """

    def breadth(level: dict[int, int | None]) -> int:
        sizes: dict[int | None, int] = {}
        for number in level.values():
            sizes[number] = sizes.get(number, 0) + 1
        return sum(size * size for size in sizes.values())

    nested = sorted(levels, key=breadth, reverse=True)  # stable: equals stay in the usual order

    def key(cpus: tuple[int, ...]) -> tuple[int, ...]:
        numbers = (level[cpus[0]] for level in nested)
        return (*(-1 if number is None else number for number in numbers), cpus[0])

    return key


def _kinds(root: Path, facts: dict[int, sysfs.CpuFacts]) -> dict[int, int]:
    """The kind of each CPU: by what the kernel names, else by gaps between capacities."""
    groups = [cpus & facts.keys() for cpus in sysfs.hybrid_kinds(root)]
    if not groups or set().union(*groups) != facts.keys():
        models: dict[int | None, set[int]] = {}
        for cpu, fact in facts.items():
            models.setdefault(fact.model, set()).add(cpu)
        if len(models) > 1 and None not in models:
            groups = sorted(
                (frozenset(cpus) for cpus in models.values()),
                key=lambda cpus: max(facts[cpu].capacity or 0 for cpu in cpus),
            )
        else:
            groups = _by_capacity(facts)
    return {cpu: kind for kind, cpus in enumerate(group for group in groups if group) for cpu in cpus}


def _by_capacity(facts: dict[int, sysfs.CpuFacts]) -> list[frozenset[int]]:
    if any(fact.capacity is None for fact in facts.values()):
        return [frozenset(facts)]
    groups: list[set[int]] = []
    previous = None
    for cpu in sorted(facts, key=lambda cpu: facts[cpu].capacity or 0):
        capacity = facts[cpu].capacity or 0
        if previous is None or capacity > previous * _KIND_GAP:
            groups.append(set())
        groups[-1].add(cpu)
        previous = capacity
    return [frozenset(group) for group in groups]
