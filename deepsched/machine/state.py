"""The state that the machine is in while something is measured, so that like is compared with like.

A host moves virtual CPUs between cores that share a cache and cores that do not, and neighbours
come and go. Both change what pays, for seconds to minutes, and figures of different states do not
compare. A look takes about a millisecond for each pair of cores.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from deepsched.errors import ThreadError
from deepsched.formatting import counted
from deepsched.machine.contention import ContentionMonitor, is_contended
from deepsched.machine.latency import GAP
from deepsched.machine.topology import Topology
from deepsched.runtime.pingpong import round_trip_ns

_MOST_PAIRS = 16
_TRIES = 3

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Conditions:
    """What was seen of the machine before and after a measurement."""

    before_ns: tuple[float, ...]
    """Round trips between neighbours among the cores in use, ns; NaN: others kept one busy. Empty
    where there is one core, or no thread can be pinned."""
    after_ns: tuple[float, ...]
    others_share: float | None
    """What others used of the worst CPU meanwhile, from 0 to 1; None if unknown."""


@dataclass(frozen=True)
class State:
    """What some measurements have in common: the distance of the cores, and whether others used
    them."""

    name: str
    """"near" or "far" where there were two distances; numbered, the nearest first, where there were
    more; empty where there was one."""
    trip_ns: float
    """Round trip between neighbouring cores, the mean, ns; NaN where there is none."""
    is_contended: bool

    def __str__(self) -> str:
        distance = "no distance" if math.isnan(self.trip_ns) else f"{self.trip_ns:.0f} ns"
        named = f"{self.name} ({distance})" if self.name else distance
        return f"{named} beside others" if self.is_contended else named


class StateWatch:
    """Looks at the cores in use when it is made, and again at `end`.

    Example:
        >>> watch = StateWatch()
        >>> len(states_of([watch.end()]))
        1
    """

    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        """`cpus`: one of each core in use (OS numbers); None for all that this process may use."""
        self._cpus = cpus
        self._before = neighbour_trips_ns(cpus)
        self._monitor = ContentionMonitor(cpus)

    def end(self, others_share: float | None = None) -> Conditions:
        """What was seen since.

        Args:
            others_share: from whoever followed the threads that have ended meanwhile, and so knows
                better what was their own.
        """
        if others_share is None:
            others_share = self._monitor.others_share()
        return Conditions(self._before, neighbour_trips_ns(self._cpus), others_share)


def neighbour_trips_ns(cpus: Sequence[int] | None = None) -> tuple[float, ...]:
    """Round trips between neighbours among these, of at most 16 pairs; see Conditions."""
    if cpus is None:
        cpus = [core.cpus[0] for core in Topology.detect().cores]
    pairs = list(itertools.pairwise(cpus))
    some = pairs[:: -(-len(pairs) // _MOST_PAIRS)] if pairs else []
    try:
        return tuple(_trip_ns(*pair) for pair in some)
    except ThreadError:
        return ()


def _trip_ns(a: int, b: int) -> float:
    for _ in range(_TRIES):
        trip = round_trip_ns(a, b)
        if trip is not None:
            return float(trip)
    return math.nan


def states_of(seen: Sequence[Conditions]) -> list[State | None]:
    """The state of each measurement; None where it changed meanwhile, or could not be seen.

    Distances are told apart by gaps in what was seen, pair by pair, so all measurements that are
    to be compared are looked at together.

    Example:
        >>> near, far = Conditions((110.0,), (112.0,), 0.0), Conditions((470.0,), (475.0,), 0.0)
        >>> moved = Conditions((110.0,), (471.0,), 0.0)
        >>> [state and str(state) for state in states_of([near, far, moved])]
        ['near (111 ns)', 'far (472 ns)', None]
        >>> [str(state) for state in states_of([near])]
        ['111 ns']
    """
    num_pairs = max((len(it.before_ns) for it in seen), default=0)
    levels = [
        _levels([trips[pair] for it in seen for trips in _looks(it) if len(trips) == num_pairs])
        for pair in range(num_pairs)
    ]
    distances = [_distance(it, levels) for it in seen]
    trips: dict[tuple[int, ...], list[float]] = {}
    for it, distance in zip(seen, distances, strict=True):
        if distance is not None:
            trips.setdefault(distance, []).extend(it.before_ns + it.after_ns)
    means = {distance: float(np.mean(of) if of else math.nan) for distance, of in trips.items()}
    names = _names(sorted(means, key=lambda distance: means[distance]))
    return [
        None
        if distance is None
        else State(names[distance], means[distance], is_contended(it.others_share))
        for it, distance in zip(seen, distances, strict=True)
    ]


def _looks(seen: Conditions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return seen.before_ns, seen.after_ns


def _levels(trips: Sequence[float]) -> list[float]:
    """The upper ends of the levels that these figures of one pair lie in."""
    ordered = [*sorted(trip for trip in trips if not math.isnan(trip)), math.inf]
    return [trip for trip, following in itertools.pairwise(ordered) if following >= GAP * trip]


def _distance(seen: Conditions, levels: Sequence[Sequence[float]]) -> tuple[int, ...] | None:
    """By pair: its level, before and after; None if these differ, or are not known."""
    if any(len(trips) != len(levels) or any(map(math.isnan, trips)) for trips in _looks(seen)):
        return None
    before, after = (
        tuple(sum(trip > end for end in ends) for trip, ends in zip(trips, levels, strict=True))
        for trips in _looks(seen)
    )
    return before if before == after else None


def _names(distances: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    if len(distances) == 1:
        return {distances[0]: ""}
    if len(distances) == 2:
        return dict(zip(distances, ("near", "far"), strict=True))
    return {distance: f"state {number}" for number, distance in enumerate(distances, 1)}


def by_state(seen: Sequence[Conditions], results: Sequence[T]) -> dict[State, list[T]]:
    """The results of each state, the commonest first; those of none are left out.

    >>> near, far = Conditions((110.0,), (112.0,), 0.0), Conditions((470.0,), (475.0,), 0.0)
    >>> list(by_state([near, far, near], [27, 15, 28]).values())
    [[27, 28], [15]]
    """
    grouped: dict[State, list[T]] = {}
    for state, result in zip(states_of(seen), results, strict=True):
        if state is not None:
            grouped.setdefault(state, []).append(result)
    return dict(sorted(grouped.items(), key=lambda item: -len(item[1])))


def by_complete_state(
    seen: Sequence[Conditions], measured: Sequence[tuple[K, T]], least: int = 1
) -> dict[State, dict[K, list[T]]]:
    """By state in which each of what is compared was measured `least` times: the figures of each;
    the commonest state first.

    >>> near, far = Conditions((110.0,), (112.0,), 0.0), Conditions((470.0,), (475.0,), 0.0)
    >>> figures = [("wide", 34), ("narrow", 60), ("wide", 61)]
    >>> list(by_complete_state([near, near, far], figures).values())
    [{'wide': [34], 'narrow': [60]}]
    """
    names = dict.fromkeys(name for name, _ in measured)
    grouped = {
        state: {name: [figure for of, figure in figures if of == name] for name in names}
        for state, figures in by_state(seen, measured).items()
    }
    return {
        state: figures
        for state, figures in grouped.items()
        if all(len(of) >= least for of in figures.values())
    }


def summarize(states: Sequence[State | None]) -> str:
    """How often each state was seen, for the reader of figures.

    >>> near, far = State("near", 111.0, False), State("far", 472.0, False)
    >>> summarize([near, near, far, None])
    'States seen, by the round trip between cores: near (111 ns): 2 measurements, far (472 ns): 1 \
measurement; changed meanwhile or not seen: 1. Figures of different states do not compare.'
    >>> summarize([State("", 111.0, False)])
    'One state was seen, by the round trip between cores: 111 ns; no other came.'
    """
    counts = Counter(state for state in states if state is not None)
    rest = len(states) - counts.total()
    if len(counts) == 1 and not rest:
        return f"One state was seen, by the round trip between cores: {next(iter(counts))}; " + (
            "no other came."
        )
    parts = [f"{state}: {counted(count, 'measurement')}" for state, count in counts.most_common()]
    missed = [f"changed meanwhile or not seen: {rest}"] if rest else []
    return (
        "States seen, by the round trip between cores: "
        + "; ".join(filter(None, (", ".join(parts), *missed)))
        + ". Figures of different states do not compare."
    )
