"""Cutting a machine into streams: pure functions of a topology."""

from __future__ import annotations

import enum
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepsched.errors import StreamConfigError
from deepsched.topology import Core, Topology, distinct


@dataclass(frozen=True, slots=True)
class Stream:
    """A slice of the machine that serves one request at a time: whole cores, side by side."""

    index: int
    """0 for the first in topology order."""
    cores: tuple[Core, ...]
    """In topology order; no core is in two streams."""
    cpus: tuple[int, ...]
    """The hardware threads that it runs on, by the OS's numbers, core by core."""

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """The numbers of the NUMA nodes that it touches."""
        return distinct(core.numa_node for core in self.cores)

    @property
    def l3_groups(self) -> tuple[int, ...]:
        """The numbers of the L3 caches that it touches."""
        return distinct(core.l3 for core in self.cores)

    @property
    def packages(self) -> tuple[int, ...]:
        """The numbers of the packages that it touches."""
        return distinct(core.package for core in self.cores)


class WarningKind(str, enum.Enum):
    """What can be unwise about a partition."""

    straddles_packages = "straddles_packages"
    """A stream has cores in several packages: it pays remote memory at every step."""
    straddles_nodes = "straddles_nodes"
    """A stream has cores in several NUMA nodes of a package."""
    shares_l3 = "shares_l3"
    """Several streams use the same L3 cache, and evict each other's data."""
    uneven_sizes = "uneven_sizes"
    """Some streams have a core more than others, so requests take different times."""
    mixed_kinds = "mixed_kinds"
    """A stream has cores of several kinds: the fast ones wait for the slow ones."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class PartitionWarning:
    """One thing that is unwise about a partition; `str()` of it is a log line."""

    kind: WarningKind
    streams: tuple[int, ...]
    """The indexes of the streams that it is about."""
    message: str
    """What it is, what it costs and what to do."""

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"kind": str(self.kind), "streams": list(self.streams), "message": self.message}


class Partition(NamedTuple):
    """The streams, and what is unwise about them."""

    streams: tuple[Stream, ...]
    warnings: tuple[PartitionWarning, ...]


def partition(
    topology: Topology,
    num_cores: int | None = None,
    num_streams: int | None = None,
    threads_per_core: int = 1,
) -> Partition:
    """Cuts the cores of `topology` into streams.

    n cores in s streams: contiguous in topology order, sizes that differ by at most one, the
    larger first.

    Args:
        num_cores: how many physical cores to use; None for all, or for as many as the CPU quota
            is worth, rounded up. Fewer than all come from as few packages as possible, evenly;
            within a package the most capable kind first, then in topology order.
        num_streams: how many streams; None for one per L3 cache of those cores (where the machine
            does not tell: one per NUMA node, else one per package, else one).
        threads_per_core: how many hardware threads of each core a stream runs on. A core that has
            fewer gives what it has.

    Raises:
        StreamConfigError: a number is out of its range, which the message tells.

    Example:
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
        >>> [stream.cpus for stream in partition(machine, num_streams=3).streams]
        [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14, 15)]
        >>> [str(warning.kind) for warning in partition(machine, num_streams=3).warnings]
        ['straddles_packages', 'shares_l3', 'uneven_sizes']
    """
    budget, what = _budget(topology)
    if num_cores is None:
        num_cores = budget
    else:
        num_cores = _between("num_cores", num_cores, budget, what)
    most_threads = max(len(core.cpus) for core in topology.cores)
    threads_per_core = _between(
        "threads_per_core", threads_per_core, most_threads, "usable hardware threads of a core"
    )
    cores = _choose(topology, num_cores)
    if num_streams is None:
        num_streams = _default_num_streams(cores)
    else:
        num_streams = _between("num_streams", num_streams, num_cores, "usable cores")
    streams = tuple(
        Stream(
            index,
            tuple(slice_),
            tuple(cpu for core in slice_ for cpu in core.cpus[:threads_per_core]),
        )
        for index, slice_ in enumerate(_cut(cores, num_streams))
    )
    return Partition(streams, tuple(_warn(streams, cores)))


def _budget(topology: Topology) -> tuple[int, str]:
    num_cores = len(topology.cores)
    if topology.cpu_quota is not None and math.ceil(topology.cpu_quota) < num_cores:
        budget = max(1, math.ceil(topology.cpu_quota))
        return budget, f"cores that the cgroup's CPU quota of {topology.cpu_quota:g} pays for"
    return num_cores, "usable cores"


def _between(name: str, value: Any, most: int, what: str) -> int:
    complaint = f"{name} must be between 1 and {most} ({what}), got {value!r}"
    if isinstance(value, bool):
        raise StreamConfigError(complaint)
    try:
        number = operator.index(value)
    except TypeError:
        raise StreamConfigError(complaint) from None
    if not 1 <= number <= most:
        raise StreamConfigError(complaint)
    return number


def _choose(topology: Topology, num_cores: int) -> tuple[Core, ...]:
    """`num_cores` cores from as few packages as possible, evenly spread over those."""
    if num_cores == len(topology.cores):
        return topology.cores
    sizes = Counter(core.package for core in topology.cores)
    chosen: list[int | None] = []
    for package, _ in sizes.most_common():  # the first of equals in topology order
        if sum(sizes[package] for package in chosen) >= num_cores:
            break
        chosen.append(package)
    left = num_cores
    take: dict[int | None, int] = {}
    # The smallest first: what it cannot give is spread over the others.
    for i, package in enumerate(reversed(chosen)):
        take[package] = min(sizes[package], left // (len(chosen) - i))
        left -= take[package]
    picked: set[tuple[int, ...]] = set()
    for package, count in take.items():
        cores = [core for core in topology.cores if core.package == package]
        best_first = sorted(cores, key=lambda core: -core.kind)
        picked.update(core.cpus for core in best_first[:count])
    return tuple(core for core in topology.cores if core.cpus in picked)


def _default_num_streams(cores: Sequence[Core]) -> int:
    for numbers in (
        [core.l3 for core in cores],
        [core.numa_node for core in cores],
        [core.package for core in cores],
    ):
        if None not in numbers:
            return len(set(numbers))
    return 1


def _cut(cores: Sequence[Core], num_streams: int) -> list[Sequence[Core]]:
    small, larger = divmod(len(cores), num_streams)
    starts = [i * small + min(i, larger) for i in range(num_streams + 1)]
    return [cores[start:end] for start, end in zip(starts, starts[1:], strict=False)]


# --- What is unwise -----------------------------------------------------------------------------


def _warn(streams: tuple[Stream, ...], cores: Sequence[Core]) -> list[PartitionWarning]:
    warnings = []
    across_packages = _crossing(streams, lambda core: core.package)
    across_nodes = _crossing(streams, lambda core: core.numa_node)
    if across_packages:
        warnings.append(
            PartitionWarning(
                WarningKind.straddles_packages,
                across_packages,
                f"{_name(across_packages)} straddle packages, and pay remote memory; "
                + _advice(cores, len(streams), lambda core: core.package),
            )
        )
    if set(across_nodes) - set(across_packages):
        warnings.append(
            PartitionWarning(
                WarningKind.straddles_nodes,
                across_nodes,
                f"{_name(across_nodes)} straddle NUMA nodes, and pay remote memory; "
                + _advice(cores, len(streams), lambda core: core.numa_node),
            )
        )
    if sharing := _sharing_l3(streams):
        warnings.append(
            PartitionWarning(
                WarningKind.shares_l3,
                sharing,
                f"{_name(sharing)} share an L3 cache with another stream, and evict each other's "
                f"data; {_default_num_streams(cores)} streams is one per L3",
            )
        )
    if remainder := len(cores) % len(streams):
        larger = tuple(range(remainder))
        warnings.append(
            PartitionWarning(
                WarningKind.uneven_sizes,
                larger,
                f"{len(cores)} cores do not divide by {len(streams)} streams: {_name(larger)} "
                "have a core more than the others, so requests take different times",
            )
        )
    mixed = _crossing(streams, lambda core: core.kind)
    if mixed:
        warnings.append(
            PartitionWarning(
                WarningKind.mixed_kinds,
                mixed,
                f"{_name(mixed)} mix kinds of core, and the fast ones wait for the slow ones; "
                f"num_cores={_num_fast(cores)} uses the fastest kind only",
            )
        )
    return warnings


def _name(streams: Sequence[int]) -> str:
    text = ", ".join(str(index) for index in streams)
    return f"stream {text}" if len(streams) == 1 else f"streams {text}"


def _crossing(
    streams: Sequence[Stream], number_of: Callable[[Core], int | None]
) -> tuple[int, ...]:
    return tuple(
        stream.index
        for stream in streams
        if len(distinct(number_of(core) for core in stream.cores)) > 1
    )


def _sharing_l3(streams: Sequence[Stream]) -> tuple[int, ...]:
    uses = Counter(l3 for stream in streams for l3 in stream.l3_groups)
    return tuple(
        stream.index for stream in streams if any(uses[l3] > 1 for l3 in stream.l3_groups)
    )


def _advice(
    cores: Sequence[Core], num_streams: int, number_of: Callable[[Core], int | None]
) -> str:
    """The nearest num_streams whose streams stay within one package or node."""

    def is_clean(count: int) -> bool:
        return all(
            len(distinct(number_of(core) for core in slice_)) <= 1 for slice_ in _cut(cores, count)
        )

    by_distance = sorted(range(1, len(cores) + 1), key=lambda count: abs(count - num_streams))
    nearest = next(filter(is_clean, by_distance))  # one core a stream is always clean
    return f"num_streams={nearest} avoids it"


def _num_fast(cores: Sequence[Core]) -> int:
    fastest = max(core.kind for core in cores)
    return sum(core.kind == fastest for core in cores)
