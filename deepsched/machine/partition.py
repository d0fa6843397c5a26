"""Partition: cuts a topology into streams. Pure functions."""

from __future__ import annotations

import bisect
import enum
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from deepsched.checks import check_integer
from deepsched.errors import StreamConfigError
from deepsched.lazy import cached_property
from deepsched.machine.sysfs import format_cpu_list
from deepsched.machine.topology import Core, Topology, distinct


@dataclass(frozen=True, slots=True)
class Stream:
    """A slice of the machine that serves one request at a time."""

    index: int
    cores: tuple[Core, ...]
    """Adjacent in topology order."""
    cpus: tuple[int, ...]
    """OS numbers of the hardware threads that it uses, core by core."""

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """OS numbers of the NUMA nodes of its cores, in topology order."""
        return distinct(core.numa_node for core in self.cores)

    @property
    def l3_groups(self) -> tuple[int, ...]:
        """Ids of the L3 caches of its cores, in topology order."""
        return distinct(core.l3 for core in self.cores)

    @property
    def packages(self) -> tuple[int, ...]:
        """OS numbers of the packages of its cores, in topology order."""
        return distinct(core.package for core in self.cores)


class WarningKind(enum.StrEnum):
    """Kinds of performance problem of a partition. Members equal their strings."""

    straddles_packages = "straddles_packages"
    """A stream's cores are in several packages: some access remote memory."""

    straddles_nodes = "straddles_nodes"
    """A stream's cores are in several NUMA nodes of one package: the same at lower cost."""

    shares_l3 = "shares_l3"
    """Several streams use one L3 cache: they evict each other's data."""

    uneven_sizes = "uneven_sizes"
    """Some streams have one core less than others: their requests take longer."""

    mixed_kinds = "mixed_kinds"
    """A stream has cores of several kinds: the fast ones wait for the slow ones."""

    @property
    def explanation(self) -> str:
        """The cost of it, and what to do.

        >>> WarningKind.uneven_sizes.explanation.startswith("Requests on streams")
        True
        """
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    WarningKind.straddles_packages: "The weights of a stream lie in turn on each node of its "
    "cores. So its cores read a part of them, and exchange activations, over the link between the "
    "packages, which has the highest latency and the lowest bandwidth of the machine. "
    "Choose num_streams so that each package has whole streams (the number of packages or a "
    "multiple), or a num_cores that fits into one package.",
    WarningKind.straddles_nodes: "The weights of a stream lie in turn on each node of its cores, "
    "which read a part of them with more latency and less bandwidth. The nodes are in one package, "
    "so this costs less than several packages. Choose num_streams so that each NUMA node has whole "
    "streams.",
    WarningKind.shares_l3: "Streams on one L3 cache evict each other's activations and weights, so "
    "that each may run slower than alone, especially with large models. It often pays: small "
    "models, and those that do not scale with cores, gain more from parallel streams than they "
    "lose by cache misses. `deepsched benchmark --sweep num_streams=1,2,4` measures it; the "
    "default is one stream per L3 cache.",
    WarningKind.uneven_sizes: "Requests on streams with one core less take longer, which affects "
    "the high percentiles of latency, though not the throughput. Choose a num_streams that divides "
    "the number of cores, or a num_cores that it divides.",
    WarningKind.mixed_kinds: "Most operators are split into equal parts, one per core, and end "
    "with the slowest core: the fast cores of such a stream wait for its slow ones. Choose "
    "num_streams so that no stream has both, or a num_cores that excludes the slow ones.",
}


@dataclass(frozen=True, slots=True)
class PartitionWarning:
    """A performance problem of a partition; `str()` gives the message."""

    kind: WarningKind
    streams: tuple[int, ...]
    """Indexes of the affected streams."""
    message: str
    """A sentence for a log: the streams, the cost, and what to do."""

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kind": str(self.kind), "streams": list(self.streams), "message": self.message}


class Partition(NamedTuple):
    """The streams, and warnings about them."""

    streams: tuple[Stream, ...]
    warnings: tuple[PartitionWarning, ...]


def partition(
    topology: Topology,
    num_cores: int | None = None,
    num_streams: int | None = None,
    threads_per_core: int = 1,
) -> Partition:
    """Cuts the cores into disjoint streams, each of adjacent cores in topology order.

    Sizes differ by at most one core; the larger streams come first.

    Args:
        topology: the machine.
        num_cores: number of physical cores to use; None for all of them, but no more than the
            cgroup's CPU quota, rounded up. A subset is taken from as few packages as possible,
            spread evenly over these; within a package from the most capable kind of core first,
            then from as few NUMA nodes and L3 caches as possible, also spread evenly. Ties go to
            the group with more usable cores, then to the first in topology order.
        num_streams: number of streams; None for one per L3 cache of the cores used (if there is
            none: one per NUMA node, else per package, else one).
        threads_per_core: number of hardware threads to use of each core; all of a core that has
            fewer.

    Raises:
        StreamConfigError: an argument is not an integer, or out of range.

    Example:
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
        >>> streams, warnings = partition(machine, num_streams=3)
        >>> [(stream.cpus[0], stream.cpus[-1]) for stream in streams]
        [(0, 5), (6, 10), (11, 15)]
        >>> print(warnings[0])
        stream 1: cores in several packages, which costs remote memory accesses; num_streams=2 \
avoids it
    """
    cores = _cores_to_use(topology, num_cores)
    most_threads = max(len(core.cpus) for core in topology.cores)
    threads = _check(
        "threads_per_core",
        threads_per_core,
        most_threads,
        "hardware threads per core"
        if most_threads > 1
        else "this machine has one hardware thread per core",
    )
    count = _num_streams(cores, num_streams)
    streams = tuple(
        Stream(index, part, tuple(cpu for core in part for cpu in core.cpus[:threads]))
        for index, part in enumerate(_cut(cores, count))
    )
    return Partition(streams, tuple(_warnings(cores, count)))


def most_cores(topology: Topology, num_cores: int | None = None) -> int:
    """Number of cores that `partition` would use.

    Raises:
        StreamConfigError: num_cores is not an integer, or out of range.

    >>> most_cores(Topology.synthetic(packages=2, cores_per_l3=8))
    16
    """
    return len(_cores_to_use(topology, num_cores))


# --- Arguments --------------------------------------------------------------------------------


def _check(name: str, value: object, most: int, unit: str) -> int:
    return check_integer(name, value, 1, most, unit=unit, error=StreamConfigError)


def _cores_to_use(topology: Topology, num_cores: int | None) -> tuple[Core, ...]:
    budget = len(topology.cores)
    unit = "usable cores" if budget > 1 else "one usable core"
    why = f"{unit}: online, in the affinity mask and the cpuset"
    quota = topology.cpu_quota
    if quota is not None and math.ceil(quota) < budget:
        budget, why = math.ceil(quota), f"the cgroup's CPU quota is {quota:g} cores"
    count = budget if num_cores is None else _check("num_cores", num_cores, budget, why)
    chosen = frozenset(_choose(topology.cores, count, _CHOICES))
    return tuple(core for core in topology.cores if core in chosen)


def _num_streams(cores: Sequence[Core], num_streams: int | None) -> int:
    if num_streams is not None:
        unit = "usable cores" if len(cores) > 1 else "one usable core"
        return _check("num_streams", num_streams, len(cores), unit)
    for level in ("l3", "numa_node", "package"):
        groups = distinct(getattr(core, level) for core in cores)
        if groups:
            return len(groups)
    return 1


# --- Choice of cores --------------------------------------------------------------------------


def _choose(cores: Sequence[Core], count: int, choices: Sequence[_Choice]) -> Iterator[Core]:
    """Chooses `count` cores; each choice distributes them over the groups of one level."""
    if count == len(cores) or not choices:
        yield from cores[:count]
        return
    (level, share), *rest = choices
    groups: dict[int | None, list[Core]] = {}
    for core in cores:
        groups.setdefault(level(core), []).append(core)
    sizes = {number: len(group) for number, group in groups.items()}
    for number, part in share(sizes, count).items():
        yield from _choose(groups[number], part, rest)


_Shares = dict[int | None, int]
"""Group -> number of cores."""


def _few_and_even(sizes: _Shares, count: int) -> _Shares:
    """From as few groups as possible, hence the largest ones, and as evenly as possible.

    Example:
        >>> _few_and_even({0: 8, 1: 2, 2: 8}, 9)
        {2: 4, 0: 5}
    """
    by_size = sorted(sizes.items(), key=lambda item: -item[1])
    totals = itertools.accumulate(size for _, size in by_size)
    num_groups = next(number for number, total in enumerate(totals, start=1) if total >= count)
    shares: _Shares = {}
    # The smallest first: the larger ones share what it lacks.
    for rest in range(num_groups, 0, -1):
        number, size = by_size[rest - 1]
        shares[number] = min(size, count // rest)
        count -= shares[number]
    return shares


def _highest_first(sizes: _Shares, count: int) -> _Shares:
    shares: _Shares = {}
    for number in sorted(sizes, key=lambda number: -(number or 0)):
        shares[number] = min(sizes[number], count)
        count -= shares[number]
    return shares


_Choice = tuple[Callable[[Core], int | None], Callable[[_Shares, int], _Shares]]
_CHOICES: tuple[_Choice, ...] = (
    (attrgetter("package"), _few_and_even),
    (attrgetter("kind"), _highest_first),
    (attrgetter("numa_node"), _few_and_even),
    (attrgetter("l3"), _few_and_even),
)


def _cut(cores: tuple[Core, ...], count: int) -> Iterator[tuple[Core, ...]]:
    size, larger = divmod(len(cores), count)
    start = 0
    for index in range(count):
        end = start + size + (index < larger)
        yield cores[start:end]
        start = end


# --- Warnings ---------------------------------------------------------------------------------


class _Row:
    """The cores in order, and where each level's ids change; independent of how they are cut."""

    def __init__(self, cores: Sequence[Core]) -> None:
        self.cores = cores
        self._changes: dict[str, list[tuple[int, int]]] = {}

    def changes(self, level: str) -> list[tuple[int, int]]:
        """Positions of adjacent cores whose ids differ; cores without an id are skipped."""
        if level not in self._changes:
            ids = [getattr(core, level) for core in self.cores]
            known = [position for position, number in enumerate(ids) if number is not None]
            pairs = itertools.pairwise(known)
            self._changes[level] = [(one, next_) for one, next_ in pairs if ids[one] != ids[next_]]
        return self._changes[level]

    @cached_property
    def l3_users(self) -> list[list[int]]:
        """Positions of each L3's cores, ascending."""
        users: dict[int, list[int]] = {}
        for position, core in enumerate(self.cores):
            if core.l3 is not None:
                users.setdefault(core.l3, []).append(position)
        return list(users.values())


class _CutRow:
    """A row cut into `count` streams as by `_cut`, without creating them."""

    def __init__(self, row: _Row, count: int) -> None:
        self.row = row
        self.count = count
        self._size, self.num_larger = divmod(len(row.cores), count)
        self._in_larger = self.num_larger * (self._size + 1)

    def stream_of(self, position: int) -> int:
        """Index of the stream that the core is in."""
        if position < self._in_larger:
            return position // (self._size + 1)
        return self.num_larger + (position - self._in_larger) // self._size

    def touching_several(self, level: str) -> Iterator[int]:
        """Streams whose cores have several ids; may repeat."""
        for one, next_ in self.row.changes(level):
            stream = self.stream_of(one)
            if stream == self.stream_of(next_):
                yield stream

    def touches_several(self, stream: int, level: str) -> bool:
        """Whether this stream's cores have several ids."""
        changes = self.row.changes(level)
        start = stream * self._size + min(stream, self.num_larger)
        index = bisect.bisect_left(changes, (start, 0))
        return index < len(changes) and self.stream_of(changes[index][1]) == stream


def _warnings(cores: tuple[Core, ...], count: int) -> Iterator[PartitionWarning]:
    row = _Row(cores)
    for kind, (find, what) in _CHECKS.items():
        streams = tuple(sorted(set(find(_CutRow(row, count)))))
        if streams:
            subject = "stream" if len(streams) == 1 else "streams"
            numbers = format_cpu_list(streams).replace(",", ", ")
            better = _nearest_without(find, row, count)
            remedy = f"num_streams={better} avoids it"
            if kind == WarningKind.shares_l3:
                remedy = f"deepsched advise MODEL measures whether it pays; {remedy}"
            message = f"{subject} {numbers}: {what}; {remedy}"
            yield PartitionWarning(kind, streams, message)


def _nearest_without(find: _Check, row: _Row, count: int) -> int:
    """The nearest number of streams without this problem.

    There always is one: a single stream shares nothing, and a stream of one core straddles nothing.
    """
    nearest_first = sorted(range(1, len(row.cores) + 1), key=lambda other: abs(other - count))
    return next(
        other for other in nearest_first if not any(True for _ in find(_CutRow(row, other)))
    )


def _straddling_packages(cut: _CutRow) -> Iterator[int]:
    return cut.touching_several("package")


def _straddling_nodes(cut: _CutRow) -> Iterator[int]:
    for stream in cut.touching_several("numa_node"):
        # Streams that straddle packages always straddle nodes: one warning is enough.
        if not cut.touches_several(stream, "package"):
            yield stream


def _sharing_l3(cut: _CutRow) -> Iterator[int]:
    for users in cut.row.l3_users:
        if cut.stream_of(users[0]) != cut.stream_of(users[-1]):
            yield from map(cut.stream_of, users)


def _smaller(cut: _CutRow) -> Iterator[int]:
    yield from range(cut.num_larger, cut.count) if cut.num_larger else ()


def _mixing_kinds(cut: _CutRow) -> Iterator[int]:
    return cut.touching_several("kind")


_Check = Callable[[_CutRow], Iterator[int]]
"""Finds the indexes of the streams with a kind of problem."""

_CHECKS: dict[WarningKind, tuple[_Check, str]] = {
    WarningKind.straddles_packages: (
        _straddling_packages,
        "cores in several packages, which costs remote memory accesses",
    ),
    WarningKind.straddles_nodes: (
        _straddling_nodes,
        "cores in several NUMA nodes, which costs remote memory accesses",
    ),
    WarningKind.shares_l3: (
        _sharing_l3,
        "L3 cache shared with other streams, which costs cache misses",
    ),
    WarningKind.uneven_sizes: (_smaller, "one core less than the others, which costs latency"),
    WarningKind.mixed_kinds: (
        _mixing_kinds,
        "cores of several kinds, of which the fast ones wait for the slow ones",
    ),
}
