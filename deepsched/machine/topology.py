"""Topology: the cores that this process may use, and how they share caches and memory.

The root folder of the machine's files is a parameter, so that a captured machine behaves like this
one.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deepsched.checks import check_integer
from deepsched.errors import TopologyError
from deepsched.formatting import counted
from deepsched.machine import cgroup, sysfs
from deepsched.machine.affinity import own_cpus
from deepsched.machine.sysfs import CpuFacts, CpuSet

logger = logging.getLogger("deepsched")


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core. Two cores share a cache, node or package exactly if its ids are equal."""

    cpus: tuple[int, ...]
    """OS numbers, ascending, of those of its hardware threads that this process may use."""
    l2: int | None
    """Numbered from 0 in topology order; None if unknown."""
    l3: int | None
    """Numbered from 0 in topology order; None if unknown."""
    numa_node: int | None
    """OS number; None if the CPU's node has no online memory."""
    package: int | None
    """OS number; None if unknown."""
    kind: int
    """Kind of core, numbered from 0 for the least capable one of the machine."""


@dataclass(frozen=True, repr=False)
class Topology:
    """The cores that this process may use, and its CPU quota.

    Example:
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=2, threads_per_core=2)
        >>> machine
        <Topology: 4 cores, 8 CPUs (0-7), 2 L3 caches, 2 NUMA nodes, 2 packages>
        >>> [core.cpus for core in machine.cores]
        [(0, 4), (1, 5), (2, 6), (3, 7)]
    """

    cores: tuple[Core, ...]
    """In topology order: package, node, L3, core. Cores that share something are adjacent."""
    cpu_quota: float | None = None
    """The cgroup's CPU quota in cores; None if there is none."""
    is_local: bool = field(default=False, compare=False)
    """Whether this is the machine that the process runs on. Not part of comparisons."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Wherever it is unpickled it may be another machine's, or another affinity mask's.
        return Topology, (self.cores, self.cpu_quota)

    @classmethod
    def detect(cls, measure: bool = False) -> Topology:
        """This machine, limited to the calling thread's affinity mask and cgroup.

        Where /sys and /proc do not tell its CPUs, or contradict the mask, as in some sandboxes:
        the CPUs of the mask, each a core of its own. That is logged once.

        Args:
            measure: ask the cores instead of the kernel which of them share a last-level cache, and
                which are hardware threads of one core: a virtual machine's kernel repeats what its
                host has told it. Takes milliseconds for a few cores, three seconds at most; keeps
                the cores busy meanwhile, so not beside requests. Cores that others kept busy are
                left where the kernel has them. The host may move virtual CPUs at any time, so this
                holds for now; `deepsched topology --measure` shows the figures.

        Example:
            >>> set(Topology.detect().cpus) <= os.sched_getaffinity(0)
            True
            >>> Topology.detect(measure=True).cpus == Topology.detect().cpus
            True
        """
        mask = own_cpus()
        root = Path("/")
        try:
            usable = _usable_cpus(root, mask)
        except TopologyError as error:
            _warn_of_files(str(error))
            return cls(_unknown_cores(mask), cgroup.cpu_quota(root), is_local=True)
        cores = _cores(_as_measured(usable) if measure else usable)
        return cls(cores, cgroup.cpu_quota(root), is_local=True)

    @classmethod
    def from_sysfs(
        cls, root: str | os.PathLike[str], affinity: Iterable[int] | None = None
    ) -> Topology:
        """A machine from a capture of its /sys and /proc.

        Args:
            root: the folder with sys/ and proc/, and with the mount points of cgroups that
                proc/mounts lists.
            affinity: OS numbers of the CPUs that the process may use; None for all.

        Raises:
            TopologyError: `root` has no machine, or none of its CPUs may be used.

        Example:
            >>> Topology.from_sysfs("/no/such/machine")
            Traceback (most recent call last):
            ...
            deepsched.errors.TopologyError: cannot read a machine from /no/such/machine: no such \
folder
        """
        return cls(_cores(_usable_cpus(Path(root), affinity)), cgroup.cpu_quota(Path(root)))

    @classmethod
    def synthetic(
        cls,
        packages: int = 2,
        nodes_per_package: int = 1,
        l3_per_node: int = 1,
        cores_per_l3: int = 8,
        threads_per_core: int = 1,
    ) -> Topology:
        """A regular machine, with a private L2 for each core.

        CPUs are numbered as usual on Linux: first the first threads of all cores, then the second
        ones.

        Raises:
            TopologyError: a count is not an integer of at least 1.

        Example:
            >>> Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=1).cores[1]
            Core(cpus=(1,), l2=1, l3=1, numa_node=0, package=0, kind=0)
        """
        packages, nodes_per_package, l3_per_node, cores_per_l3, threads_per_core = (
            check_integer(name, count, 1, error=TopologyError)
            for name, count in (
                ("packages", packages),
                ("nodes_per_package", nodes_per_package),
                ("l3_per_node", l3_per_node),
                ("cores_per_l3", cores_per_l3),
                ("threads_per_core", threads_per_core),
            )
        )
        total = packages * nodes_per_package * l3_per_node * cores_per_l3
        return cls(
            cores=tuple(
                Core(
                    cpus=tuple(range(core, total * threads_per_core, total)),
                    l2=core,
                    l3=core // cores_per_l3,
                    numa_node=core // (cores_per_l3 * l3_per_node),
                    package=core // (cores_per_l3 * l3_per_node * nodes_per_package),
                    kind=0,
                )
                for core in range(total)
            )
        )

    @property
    def cpus(self) -> tuple[int, ...]:
        """OS numbers of all CPUs that this process may use, ascending."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def l3_groups(self) -> tuple[int, ...]:
        """Ids of the L3 caches, in topology order."""
        return distinct(core.l3 for core in self.cores)

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """OS numbers of the NUMA nodes of these CPUs, in topology order."""
        return distinct(core.numa_node for core in self.cores)

    @property
    def packages(self) -> tuple[int, ...]:
        """OS numbers of the packages, in topology order."""
        return distinct(core.package for core in self.cores)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        quota = "" if self.cpu_quota is None else f", quota of {self.cpu_quota:g} cores"
        return (
            f"<Topology: {counted(len(self.cores), 'core')}, {counted(len(self.cpus), 'CPU')} "
            f"({sysfs.format_cpu_list(self.cpus)}), {counted(len(self.l3_groups), 'L3 cache')}, "
            f"{counted(len(self.numa_nodes), 'NUMA node')}, "
            f"{counted(len(self.packages), 'package')}{quota}>"
        )


def distinct(ids: Iterable[int | None]) -> tuple[int, ...]:
    """The distinct ids in order of first appearance, without None."""
    return tuple(dict.fromkeys(number for number in ids if number is not None))


def online_cores(root: str | os.PathLike[str] = "/") -> tuple[Core, ...]:
    """The cores of all online CPUs of a machine, also those that this process may not use.

    Ids of caches may differ from those in a Topology, which only numbers its own.

    Args:
        root: the folder with sys/ and proc/.

    Raises:
        TopologyError: `root` has no machine, and is another than this one's.

    Example:
        >>> {cpu for core in online_cores() for cpu in core.cpus} >= set(Topology.detect().cpus)
        True
    """
    try:
        return _cores(sysfs.read_cpus(Path(root)))
    except TopologyError as error:
        if Path(root) != Path("/"):
            raise
        _warn_of_files(str(error))
        return _unknown_cores(own_cpus())


@functools.cache
def _warn_of_files(why: str) -> None:
    """Once in a process for each reason."""
    logger.warning(
        "this machine's cores, caches and NUMA nodes are unknown, and each CPU of the affinity "
        "mask counts as a core: %s",
        why,
    )


def _unknown_cores(cpus: CpuSet) -> tuple[Core, ...]:
    return tuple(Core((cpu,), None, None, None, None, 0) for cpu in sorted(cpus))


def _usable_cpus(root: Path, affinity: Iterable[int] | None) -> list[CpuFacts]:
    return _usable(sysfs.read_cpus(root), affinity, cgroup.allowed_cpus(root))


def _as_measured(cpus: Sequence[CpuFacts]) -> list[CpuFacts]:
    """The same CPUs, with the cores and the L3 caches that a look at them found."""
    from deepsched.machine import probe  # with numpy, which nothing else here takes time to import

    cores = _cores(cpus)
    found = probe.look([core.cpus[0] for core in cores], probe.sharing_l2([it.l2 for it in cores]))
    members = {core.cpus[0]: frozenset(core.cpus) for core in cores}

    def union(group: Iterable[int]) -> CpuSet:
        return frozenset().union(*(members[found.cpus[place]] for place in group))

    l3 = {cpu: group for group in map(union, found.sharing) for cpu in group}
    core = {cpu: group for group in map(union, found.same_core) for cpu in group}
    measured = []
    for facts in cpus:
        # Of a core without a figure the kernel's word is all there is: it stays with the others.
        mates = (l3[cpu] for cpu in sorted(facts.l3) if cpu in l3)
        own_l3 = l3.get(facts.cpu) or next(mates, facts.l3)
        own_core = core.get(facts.cpu, facts.core)
        l2 = facts.l2 | own_core if facts.l2 else facts.l2
        measured.append(replace(facts, core=own_core, l2=l2, l3=own_l3))
    return measured


def _cores(cpus: Iterable[CpuFacts]) -> tuple[Core, ...]:
    # Grouped by equal sets, so that no CPU is in two cores even if the files contradict each other.
    by_core: dict[CpuSet, list[CpuFacts]] = {}
    for facts in cpus:
        by_core.setdefault(facts.core, []).append(facts)
    groups = _in_topology_order(list(by_core.values()))
    l2 = _number_caches(group[0].l2 for group in groups)
    l3 = _number_caches(group[0].l3 for group in groups)
    return tuple(
        Core(
            cpus=tuple(facts.cpu for facts in group),
            l2=l2.get(group[0].l2),
            l3=l3.get(group[0].l3),
            numa_node=group[0].numa_node,
            package=group[0].package,
            kind=group[0].kind,
        )
        for group in groups
    )


def _usable(
    online: Sequence[CpuFacts], affinity: Iterable[int] | None, cpuset: CpuSet | None
) -> list[CpuFacts]:
    allowed = {facts.cpu for facts in online}
    text = f"online: {sysfs.format_cpu_list(allowed)}"
    for name, cpus in (("affinity mask", affinity), ("cgroup's cpuset", cpuset)):
        if cpus is not None:
            limit = frozenset(cpus)
            allowed &= limit
            text += f"; {name}: {sysfs.format_cpu_list(limit) or 'none'}"
    if not allowed:
        raise TopologyError(f"no CPU is left that this process may use ({text})")
    return [facts for facts in online if facts.cpu in allowed]


def _number_caches(caches: Iterable[CpuSet]) -> dict[CpuSet, int]:
    """CPUs that share a cache -> the id of the cache. The empty set is no cache."""
    return dict(zip(dict.fromkeys(filter(None, caches)), itertools.count(), strict=False))


def _in_topology_order(cores: list[list[CpuFacts]]) -> list[list[CpuFacts]]:
    """Sorted by the coarsest level first, so that cores that share something are adjacent.

    The order of levels differs: a node may contain several packages or be a part of one, contain
    several L3s or be one of several nodes that share one. Of two nested levels the outer one is
    that with fewer groups.
    """

    def num_groups(level: Callable[[CpuFacts], Hashable]) -> int:
        return len({level(core[0]) for core in cores})

    levels = sorted(_LEVELS, key=num_groups)  # stable: package before node before L3 if equal
    return sorted(cores, key=lambda core: ([level(core[0]) for level in levels], core[0].cpu))


def _first(cpus: CpuSet) -> int:
    return min(cpus, default=-1)


# Packages without a number from the firmware are distinguished by their sets.
_LEVELS: tuple[Callable[[CpuFacts], tuple[int, ...]], ...] = (
    lambda facts: (-1 if facts.package is None else facts.package, _first(facts.package_cpus)),
    lambda facts: (-1 if facts.numa_node is None else facts.numa_node,),
    lambda facts: (_first(facts.die),),
    lambda facts: (_first(facts.l3),),
    lambda facts: (_first(facts.cluster),),
    lambda facts: (_first(facts.l2),),
)
