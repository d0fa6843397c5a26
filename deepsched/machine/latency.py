"""Core-to-core latency: which pairs are measured, and what groups of cores follow.

Cores are numbered from 0 here, and how a pair is measured is a parameter, so that a simulator of
pairs can stand in for a machine.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
"""Round trips in ns: symmetric, NaN where there is none."""

RoundTrip = Callable[[int, int], float | None]
"""Measures two cores; ns, or None if they were not free at the same time."""

GAP = 1.6
"""From one figure to the next higher one: a ratio that parts levels. Within a level neighbours are
closer, though a mesh spans a factor of two from end to end. A cache is left at a factor of 2 (two
Xeons) to 5 (the dies of an Epyc)."""

SAME_CORE_SHARE = 0.3
"""In memory latencies: a round trip below is one of two hardware threads of one core. Those need
0.1 to 0.25 of them; cores that share an L3 at least 0.4."""


def measure_matrix(
    num_cores: int,
    round_trip: RoundTrip,
    memory_ns: float,
    together: Collection[frozenset[int]] = (),
    seconds: float = 3.0,
    clock: Callable[[], float] = time.monotonic,
) -> Matrix:
    """Measures as many pairs as the time allows, those first that decide on the groups.

    First each core with the one before it, since neighbours in topology order most likely share
    a cache; then, group by group, one core of it with one of each group that it has no figure
    with. 24 groups of 8 take 500 pairs so, and 2,400 if they are interleaved. Then the other pairs,
    for the picture, in an order that leaves holes everywhere alike; then once more those that part
    groups. Of several figures of a pair the least counts. A pair takes about 0.5 ms.

    One pair at a time: two pairs share links that nobody tells us of, and waiting for each other's
    lines is what is to be measured.

    Args:
        num_cores: cores 0 to num_cores - 1, in topology order.
        round_trip: how a pair is measured.
        memory_ns: latency of a load from memory, ns.
        together: cores that the kernel says share an L2 or a core.
        seconds: after which no further pair is begun.
        clock: what counts the seconds.
    """
    matrix = np.full((num_cores, num_cores), np.nan)
    ends = clock() + seconds

    def measure(pairs: Iterable[tuple[int, int]]) -> bool:
        """Whether all of them could be, in time."""
        for a, b in pairs:
            if clock() >= ends:
                return False
            trip = round_trip(a, b)
            tried.add((a, b))
            if trip is not None:
                matrix[a, b] = matrix[b, a] = np.fmin(matrix[a, b], trip)
        return True

    tried: set[tuple[int, int]] = set()
    chain = list(itertools.pairwise(range(num_cores)))
    in_time = measure(chain)
    for _ in range(2):  # a disturbed figure must not part neighbours
        group_of = _group_of(sharing_groups(matrix, memory_ns, together))
        in_time = in_time and measure(pair for pair in chain if _differ(group_of, pair))
    while in_time:
        groups = sharing_groups(matrix, memory_ns, together)
        undecided = next(_undecided(groups, tried), None)
        if undecided is None:
            break
        in_time = measure(undecided)
    if in_time:
        pairs = list(itertools.combinations(range(num_cores), 2))
        shuffled = [pairs[at] for at in np.random.default_rng(0).permutation(len(pairs))]
        in_time = measure([pair for pair in shuffled if pair not in tried])
    if in_time:
        group_of = _group_of(sharing_groups(matrix, memory_ns, together))
        measure(pair for pair in shuffled if _differ(group_of, pair))
    return matrix


def _group_of(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    return {core: at for at, group in enumerate(groups) for core in group}


def _differ(group_of: dict[int, int], pair: tuple[int, int]) -> bool:
    return group_of[pair[0]] != group_of[pair[1]]


def _undecided(
    groups: Sequence[Sequence[int]], tried: Collection[tuple[int, int]]
) -> Iterator[list[tuple[int, int]]]:
    """For each group: the pairs of it with each later group that none was tried of yet."""
    group_of = _group_of(groups)
    met = {tuple(sorted((group_of[a], group_of[b]))) for a, b in tried}
    for at, group in enumerate(groups):
        pairs = [
            (min(group[0], other[0]), max(group[0], other[0]))
            for there, other in enumerate(groups[at + 1 :], at + 1)
            if (at, there) not in met
        ]
        if pairs:
            yield pairs


# --- Groups -----------------------------------------------------------------------------------


def same_core_groups(matrix: Matrix, memory_ns: float) -> list[list[int]]:
    """The cores that are hardware threads of one, by their round trips; each core is in one group.

    >>> same_core_groups(np.array([[np.nan, 22, 90], [22, np.nan, 95], [90, 95, np.nan]]), 100.0)
    [[0, 1], [2]]
    """
    merges = _spanning_tree(matrix)
    return _components(len(matrix), (m[1:] for m in merges if m[0] < SAME_CORE_SHARE * memory_ns))


def sharing_groups(
    matrix: Matrix, memory_ns: float, together: Collection[frozenset[int]] = ()
) -> list[list[int]]:
    """The cores that share a last-level cache, by their round trips; each core is in one group.

    Single linkage, cut at the first gap: cores are joined in the order of their distance, up to
    where the distance jumps (`GAP`). Noise only adds to figures, and one quiet figure joins a core
    to its group, so a disturbed pair does no harm as long as another one of that core is not.
    What is below the gap shares a cache only if half a round trip, one transfer, takes less than
    a load from memory; otherwise it passes no cache that both have. So figures that are all alike
    say something too.

    Args:
        matrix: round trips in ns, shape (n, n); NaN where there is none.
        memory_ns: latency of a load from memory, ns.
        together: cores that the kernel says share an L2 or a core: their distance is no level of
            its own, if it is that of a shared cache at all.

    Example:
        >>> near, far = 110.0, 470.0
        >>> trips = np.array([[0, near, far], [near, 0, far], [far, far, 0]])
        >>> sharing_groups(trips, memory_ns=130.0)
        [[0, 1], [2]]
        >>> sharing_groups(np.array([[np.nan, far], [far, np.nan]]), memory_ns=130.0)
        [[0], [1]]
    """
    merges = _spanning_tree(matrix)
    inner = {frozenset(pair) for cores in together for pair in itertools.combinations(cores, 2)}
    levels = [
        trip
        for trip, *pair in merges
        if trip >= SAME_CORE_SHARE * memory_ns and frozenset(pair) not in inner
    ]
    most = 2 * memory_ns
    for trip, following in itertools.pairwise([*levels, math.inf]):
        if trip > most:
            break
        if following >= GAP * trip:
            most = trip
            break
    return _components(len(matrix), (pair for trip, *pair in merges if trip <= most))


def _spanning_tree(matrix: Matrix) -> list[tuple[float, int, int]]:
    """The merges of single linkage, the nearest first: (ns, core, core). Prim's algorithm; cores
    that no figure leads to are not merged."""
    num_cores = len(matrix)
    distances = np.where(np.isnan(matrix), np.inf, matrix)
    nearest = distances[0].copy() if num_cores else np.empty(0)
    inside = np.zeros(num_cores, dtype=bool)
    inside[:1] = True
    via = np.zeros(num_cores, dtype=int)
    merges = []
    for _ in range(num_cores - 1):
        nearest[inside] = np.inf
        core = int(np.argmin(nearest))
        if inside[core]:  # all that is left is unreachable: go on with some core of it
            core = int(np.argmin(inside))
        elif nearest[core] < np.inf:
            merges.append((float(nearest[core]), int(via[core]), core))
        inside[core] = True
        closer = distances[core] < nearest
        nearest[closer] = distances[core][closer]
        via[closer] = core
    return sorted(merges)


def _components(num_cores: int, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """The connected components, each ascending, by their first core."""
    group_of = list(range(num_cores))
    for a, b in pairs:
        joined, kept = group_of[b], group_of[a]
        group_of = [kept if group == joined else group for group in group_of]
    groups: dict[int, list[int]] = {}
    for core, group in enumerate(group_of):
        groups.setdefault(group, []).append(core)
    return list(groups.values())


def is_change(before: Matrix, after: Matrix) -> bool:
    """Whether some pair has moved to another level from one look to the next.

    >>> near, far = (np.array([[np.nan, ns], [ns, np.nan]]) for ns in (112.0, 471.0))
    >>> is_change(near, far), is_change(near, near * 1.1)
    (True, False)
    """
    ratios = after / before
    return bool(np.any(ratios >= GAP) or np.any(ratios <= 1 / GAP))
