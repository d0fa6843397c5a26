"""Which of the free cores a lease takes. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

from deepsched.machine.topology import Core


def choose_cores(
    cores: Sequence[Core], free: Collection[Core], count: int, own: Collection[Core] = ()
) -> tuple[Core, ...]:
    """Chooses `count` of the `free` ones, next to one another in topology order.

    Of all such runs the one with the fewest packages; then with the most capable kinds of core; in
    the fewest NUMA nodes, then L3 caches; with the fewest gaps; which leaves the fewest free cores
    in the L3 caches that it touches, so that whole caches stay whole; with the most of `own`; and
    the first.

    Args:
        cores: all of the budget, in topology order.
        free: at least `count` of them.
        own: those that the caller has already, and may keep.

    >>> from deepsched import Topology
    >>> cores = Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4).cores
    >>> [core.cpus[0] for core in choose_cores(cores, cores[1:], 3)]
    [1, 2, 3]
    >>> [core.cpus[0] for core in choose_cores(cores, cores[1:], 4)]
    [4, 5, 6, 7]
    """
    places = [place for place, core in enumerate(cores) if core in free]
    row = [cores[place] for place in places]
    changes = {
        level: _running(
            getattr(one, level) != getattr(other, level) for one, other in itertools.pairwise(row)
        )
        for level in ("package", "numa_node", "l3")
    }
    gaps = _running(other - one != 1 for one, other in itertools.pairwise(places))
    kinds = [0, *itertools.accumulate(core.kind for core in row)]
    owned = [0, *itertools.accumulate(core in own for core in row)]
    first_of_l3, end_of_l3 = _bounds([core.l3 for core in row])

    def cost(start: int) -> tuple[int, ...]:
        end, last = start + count, start + count - 1
        return (
            changes["package"][last] - changes["package"][start],
            kinds[start] - kinds[end],
            changes["numa_node"][last] - changes["numa_node"][start],
            changes["l3"][last] - changes["l3"][start],
            gaps[last] - gaps[start],
            (start - first_of_l3[start]) + (end_of_l3[last] - end),
            owned[start] - owned[end],
            start,
        )

    start = min(range(len(row) - count + 1), key=cost)
    return tuple(row[start : start + count])


def _running(changes: Iterable[bool]) -> list[int]:
    """Of each position, how many of the changes lie before it."""
    return [0, *itertools.accumulate(changes)]


def _bounds(ids: Sequence[int | None]) -> tuple[list[int], list[int]]:
    """Of each position, where the run of equal ids around it begins and ends."""
    begins: list[int] = []
    for place, number in enumerate(ids):
        is_same = place > 0 and number == ids[place - 1]
        begins.append(begins[-1] if is_same else place)
    ends: list[int] = []
    for place in reversed(range(len(ids))):
        is_same = bool(ends) and ids[place] == ids[place + 1]
        ends.append(ends[-1] if is_same else place + 1)
    return begins, ends[::-1]
