"""What was measured of this machine beside what its kernel says, and what follows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepsched.errors import ThreadError, TopologyError
from deepsched.formatting import counted
from deepsched.machine import cgroup, probe
from deepsched.machine.contention import ContentionMonitor, is_contended
from deepsched.machine.probe import SECONDS, Look
from deepsched.machine.sysfs import format_cpu_list, read_text
from deepsched.machine.topology import Topology
from deepsched.runtime.memory_speed import read_bandwidth

_READING_S = 0.03
_LEAST_WATCH_S = 0.3
"""What others use of a CPU is counted in ticks of 10 ms, so it takes some of them to tell."""
_MOST_BUFFERS = 512 << 20
_LEAST_BUFFERS = 32 << 20


def latency_matrix(
    topology: Topology | None = None, *, seconds: float = SECONDS
) -> NDArray[np.float64]:
    """Measures the round trip of a cache line between each two cores, in ns.

    Keeps the cores busy meanwhile, two at a time. On a large machine, pairs are left out once the
    time is over; those that decide on the groups come first.

    Args:
        topology: whose cores; this machine's if None.
        seconds: how long to measure at most.

    Returns:
        float64, shape (cores, cores), symmetric, in the order of `topology.cores`; NaN on the
        diagonal, and where a pair was not measured or not free within 20 ms.

    Raises:
        TopologyError: the topology is not this machine's, but synthetic or captured.

    Example:
        >>> topology = Topology.detect()
        >>> latency_matrix(topology).shape == (len(topology.cores), len(topology.cores))
        True
        >>> latency_matrix(Topology.synthetic())
        Traceback (most recent call last):
        ...
        deepsched.errors.TopologyError: only the machine that this process runs on can be \
measured; this topology is synthetic or captured. Use Topology.detect()
    """
    return look(topology or Topology.detect(), seconds).round_trips_ns


def look(topology: Topology, seconds: float = SECONDS) -> Look:
    """A look at the cores of a topology, which must be this machine's.

    Raises:
        TopologyError: it is synthetic or captured.
    """
    _check_local(topology)
    cores = topology.cores
    together = probe.sharing_l2([core.l2 for core in cores])
    return probe.look([core.cpus[0] for core in cores], together, seconds)


def _check_local(topology: Topology) -> None:
    if not topology.is_local:
        raise TopologyError(
            "only the machine that this process runs on can be measured; this topology is "
            "synthetic or captured. Use Topology.detect()"
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the measurement adds to the kernel's word, or takes from it."""

    kind: str
    """"l3_is_split", "l3_is_shared", "core_is_shared", "l3_is_unreported"."""
    is_disagreement: bool
    message: str
    """Both sides, with figures."""
    consequence: str
    """What follows for schedulers and options."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "kind": self.kind,
            "is_disagreement": self.is_disagreement,
            "message": self.message,
            "consequence": self.consequence,
        }


@dataclass(frozen=True, eq=False)
class MeasuredMachine:
    """A topology as the kernel reports it, and what was measured of it."""

    topology: Topology
    look: Look
    core_bandwidth: float | None
    """Bytes a second that one core reads from memory; None if it could not be measured."""
    group_bandwidths: tuple[float | None, ...]
    """The same of all cores of each of `look.sharing` together."""
    others_share: float | None
    """What others used of the worst CPU meanwhile, from 0 to 1; None if unknown."""

    @property
    def is_reliable(self) -> bool:
        """Whether there are figures of all cores, and others left the CPUs alone meanwhile."""
        missing = self.look.refused or self.look.num_missing
        return not missing and not is_contended(self.others_share)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Where kernel and measurement differ, and what follows."""
        return tuple(compare(self.topology, self.look))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: cores by the OS number of their first hardware thread."""
        it = self.look
        return {
            "cpus": list(it.cpus),
            "round_trips_ns": [
                [None if math.isnan(trip) else round(trip) for trip in row]
                for row in it.round_trips_ns.tolist()
            ],
            "memory_latency_ns": None if math.isnan(it.memory_ns) else round(it.memory_ns, 1),
            "l3_groups": [_cpus(it, group) for group in it.sharing],
            "same_core": [_cpus(it, group) for group in it.same_core],
            "core_bandwidth": self.core_bandwidth,
            "group_bandwidths": list(self.group_bandwidths),
            "others_share": self.others_share,
            "is_reliable": self.is_reliable,
            "refused": it.refused or None,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def measure_machine(topology: Topology, seconds: float = SECONDS) -> MeasuredMachine:
    """Measures latencies, and the memory bandwidth of one core and of each group that shares a
    cache. Takes twice `seconds` at most, and 512 MiB of memory or an eighth of what is there.

    Raises:
        TopologyError: the topology is synthetic or captured.

    Example:
        >>> measured = measure_machine(Topology.detect())
        >>> len(measured.group_bandwidths) == len(measured.look.sharing)
        True
    """
    _check_local(topology)
    monitor = ContentionMonitor(topology.cpus)
    found = look(topology, seconds)
    size = _buffer_bytes(found.cpus[0])
    ends = time.monotonic() + seconds
    one = _bandwidth(found.cpus[:1], size)
    groups = [_cpus(found, group) for group in found.sharing]
    together = [_bandwidth(cpus, size) if time.monotonic() < ends else None for cpus in groups]
    time.sleep(max(0.0, _LEAST_WATCH_S - monitor.seconds))
    return MeasuredMachine(topology, found, one, tuple(together), monitor.others_share())


def _bandwidth(cpus: Sequence[int], size: int) -> float | None:
    try:
        return read_bandwidth(cpus, size // len(cpus), _READING_S)
    except (ThreadError, MemoryError):
        return None


def _buffer_bytes(cpu: int) -> int:
    """What the threads of a group read together: four times its L3, so that hardly a line is still
    there on the next lap, within what the memory allows."""
    root = Path("/")
    text = read_text(root / f"sys/devices/system/cpu/cpu{cpu}/cache/index3/size") or ""
    l3 = int(text[:-1]) << 10 if text.endswith("K") and text[:-1].isdecimal() else 0
    limits = [cgroup.memory_limit(root), _available_bytes(root), 8 * _MOST_BUFFERS]
    room = min(limit for limit in limits if limit is not None) // 8
    return min(max(4 * l3, _LEAST_BUFFERS), room)


def _available_bytes(root: Path) -> int | None:
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and words[1].isdecimal():
            return int(words[1]) << 10
    return None


def _cpus(found: Look, group: Sequence[int]) -> list[int]:
    return [found.cpus[place] for place in group]


# --- What differs -----------------------------------------------------------------------------


def compare(topology: Topology, found: Look) -> Iterator[Finding]:
    """Where the kernel and a look differ.

    Example:
        >>> from deepsched.machine.probe import Look
        >>> trips = np.array([[np.nan, 471.0], [471.0, np.nan]])
        >>> found = Look((0, 1), trips, 132.0, ((0,), (1,)), (), "")
        >>> machine = Topology.synthetic(packages=1, cores_per_l3=2)
        >>> print(next(compare(machine, found)).message)
        the kernel says that CPUs 0-1 share an L3 cache. Measured, they do not: between 0 | 1 a \
cache line takes 471 ns there and back, while one load from memory takes 132 ns
    """
    cores = topology.cores
    for group in found.same_core:
        yield _shared_core(found, group)
    group_of = {place: at for at, group in enumerate(found.sharing) for place in group}
    told = {at: cores[at].l3 for at in group_of}
    for l3 in dict.fromkeys(told.values()):
        parts: dict[int, list[int]] = {}
        for place in (at for at, number in told.items() if number == l3):
            parts.setdefault(group_of[place], []).append(place)
        if l3 is not None and len(parts) > 1:
            yield _split(found, list(parts.values()))
    for group in found.sharing:
        l3s = {told[place] for place in group}
        if None in l3s:
            if len(found.sharing) > 1:
                yield _unreported(found)
            break
        if len(l3s) > 1:
            yield _joined(found, group, len(l3s))


def _split(found: Look, parts: Sequence[Sequence[int]]) -> Finding:
    cpus = [_cpus(found, part) for part in parts]
    everyone = format_cpu_list(itertools.chain(*cpus))
    groups = " | ".join(format_cpu_list(part) for part in cpus[:8]) + " | ..." * (len(cpus) > 8)
    across = _median(found, parts)
    return Finding(
        "l3_is_split",
        True,
        f"the kernel says that CPUs {everyone} share an L3 cache. Measured, they do not: between "
        f"{groups} a cache line takes {across:.0f} ns there and back, while one load from memory "
        f"takes {found.memory_ns:.0f} ns",
        "A request whose cores are in several of these groups gains little from them: prefer "
        f"multi_stream with num_streams={len(found.sharing)} or a multiple, or elastic, to "
        "single_stream. A model whose weights fit only the caches of several groups together is "
        "the exception; deepsched advise measures it. Where the host moves its virtual CPUs, "
        "this changes with time: deepsched doctor looks twice.",
    )


def _joined(found: Look, group: Sequence[int], num_caches: int) -> Finding:
    return Finding(
        "l3_is_shared",
        True,
        f"the kernel says that CPUs {format_cpu_list(_cpus(found, group))} have "
        f"{counted(num_caches, 'L3 cache')}. Measured, they are as near to one another as if they "
        f"had one: {_median(found, [[place] for place in group]):.0f} ns",
        "Streams across these caches lose nothing by it; Topology.detect(measure=True) sees one.",
    )


def _unreported(found: Look) -> Finding:
    groups = "; ".join(format_cpu_list(_cpus(found, group)) for group in found.sharing)
    return Finding(
        "l3_is_unreported",
        False,
        f"the kernel does not say which CPUs share an L3 cache. Measured: {groups}",
        f"multi_stream with num_streams={len(found.sharing)} keeps each stream within one.",
    )


def _shared_core(found: Look, group: Sequence[int]) -> Finding:
    cpus = format_cpu_list(_cpus(found, group))
    num_cores = len(found.cpus) - sum(len(same) - 1 for same in found.same_core)
    return Finding(
        "core_is_shared",
        True,
        f"the kernel says that CPUs {cpus} are cores of their own. Measured, they are most likely "
        f"hardware threads of one: {_median(found, [[place] for place in group]):.0f} ns there and "
        f"back, while one load from memory takes {found.memory_ns:.0f} ns",
        f"The second thread of a core adds little to inference: use num_cores={num_cores}, and "
        "taskset or docker run --cpuset-cpus with one of these CPUs.",
    )


def _median(found: Look, parts: Sequence[Sequence[int]]) -> float:
    """Of the round trips between cores of different parts."""
    trips = [
        found.round_trips_ns[np.ix_(one, other)].ravel()
        for one, other in itertools.combinations(parts, 2)
    ]
    measured = np.concatenate(trips)
    return float(np.nanmedian(measured)) if not np.isnan(measured).all() else math.nan
