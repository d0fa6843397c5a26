"""The tree of core groups: streams at the leaves, merged along the machine up to the whole budget.

Pure: streams in, tree out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from deepsched.machine.partition import Stream

Range = tuple[int, int]


class GroupTree(NamedTuple):
    """Core groups by number: the streams first, in their order, then merges, the root last."""

    leaves: tuple[Range, ...]
    """Of each group: the first of its streams, and the one after the last."""
    parents: tuple[int, ...]
    """The group that it is merged into; -1 for the root."""
    streams: tuple[Stream, ...]

    @property
    def num_leaves(self) -> int:
        """How many streams there are."""
        return len(self.streams)

    @property
    def root(self) -> int:
        """The group of all cores."""
        return len(self.leaves) - 1

    @property
    def straddling(self) -> tuple[int, ...]:
        """The groups that span NUMA nodes."""
        return tuple(
            group
            for group, (low, high) in enumerate(self.leaves)
            if len({core.numa_node for it in self.streams[low:high] for core in it.cores}) > 1
        )

    def around(self, group: int) -> Iterator[int]:
        """The group itself, and those that contain it, up to the root."""
        while group >= 0:
            yield group
            group = self.parents[group]

    def cpus(self, group: int) -> tuple[int, ...]:
        """The hardware threads of a group, in the machine's order."""
        low, high = self.leaves[group]
        return tuple(cpu for stream in self.streams[low:high] for cpu in stream.cpus)

    def num_cores(self, group: int) -> int:
        """How many cores it has."""
        low, high = self.leaves[group]
        return sum(len(stream.cores) for stream in self.streams[low:high])


def tree_of(streams: Sequence[Stream]) -> GroupTree:
    """Merges neighbours in pairs: first those that share an L3 cache, then within a NUMA node, a
    package, and all. An odd one out is merged a step later.

    >>> from deepsched import Topology, partition
    >>> machine = Topology.synthetic(packages=2, cores_per_l3=4)
    >>> tree = tree_of(partition(machine, num_streams=4).streams)
    >>> tree.leaves
    ((0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4), (0, 4))
    >>> list(tree.around(2))
    [2, 5, 6]
    """
    merges: list[Range] = []
    ranges: list[Range] = [(index, index + 1) for index in range(len(streams))]
    for level in ("l3", "numa_node", "package", None):

        def place(group: Range, level: str | None = level) -> int | Range | None:
            if level is None:
                return None
            # A stream that straddles two counts as where it begins. What the machine does not
            # report is taken to be shared with nobody.
            found: int | None = getattr(streams[group[0]].cores[0], level)
            return group if found is None else found

        merged: list[Range] = []
        for _, found in groupby(ranges, place):
            neighbours = list(found)
            while len(neighbours) > 1:
                pairs = [neighbours[at : at + 2] for at in range(0, len(neighbours), 2)]
                neighbours = [(pair[0][0], pair[-1][1]) for pair in pairs]
                merges += [
                    group for group, pair in zip(neighbours, pairs, strict=True) if len(pair) > 1
                ]
            merged += neighbours
        ranges = merged
    merges.sort(key=lambda group: (group[1] - group[0], group))
    leaves = (*((index, index + 1) for index in range(len(streams))), *merges)
    return GroupTree(leaves, _parents(leaves), tuple(streams))


def _parents(leaves: Sequence[Range]) -> tuple[int, ...]:
    """Of each range: the narrowest that contains it. Sorted by width, so that comes later."""
    parents = [-1] * len(leaves)
    above: list[int] = []  # by stream: the widest group so far that contains it
    for number, (low, high) in enumerate(leaves):
        if number < len(leaves) and high - low == 1:
            above.append(number)
            continue
        for child in set(above[low:high]):
            parents[child] = number
        above[low:high] = [number] * (high - low)
    return tuple(parents)
