"""A look at this machine's cores: how far apart they are, measured on the CPUs themselves."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from deepsched.errors import ThreadError
from deepsched.machine.latency import Matrix, measure_matrix, same_core_groups, sharing_groups
from deepsched.runtime.memory_speed import memory_latency_ns
from deepsched.runtime.pingpong import round_trip_ns

SECONDS = 3.0
"""How long a look takes at most, unless told: enough for all pairs of a hundred cores, and for
those that decide of several hundred."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one look found. Cores are numbered by their place in `cpus`."""

    cpus: tuple[int, ...]
    """OS numbers: one hardware thread of each core."""
    round_trips_ns: Matrix
    """Shape (cores, cores); NaN where there is no figure, and on the diagonal."""
    memory_ns: float
    """Latency of a load from memory, ns; NaN if it could not be measured."""
    sharing: tuple[tuple[int, ...], ...]
    """Cores that share a last-level cache. Each core with a figure is in one group."""
    same_core: tuple[tuple[int, ...], ...]
    """Cores of the kernel that are hardware threads of one; groups of two and more."""
    refused: str
    """Why the system let no thread be pinned; empty if it did."""

    @property
    def num_missing(self) -> int:
        """Cores that have no figure at all, though there are others: somebody kept them busy."""
        if len(self.cpus) < 2:
            return 0
        return int(np.isnan(self.round_trips_ns).all(axis=1).sum())


def look(
    cpus: Sequence[int], together: Collection[frozenset[int]] = (), seconds: float = SECONDS
) -> Look:
    """Measures the latency between these CPUs.

    Args:
        cpus: OS numbers, one of each core, in topology order.
        together: places in `cpus` of cores that share an L2, as the kernel says.
        seconds: how long to measure at most.
    """
    refused = ""

    def round_trip(a: int, b: int) -> float | None:
        nonlocal refused
        try:
            return round_trip_ns(cpus[a], cpus[b])
        except ThreadError as error:
            refused = str(error)
            return None

    memory_ns = float("nan")
    matrix = np.full((len(cpus), len(cpus)), np.nan)
    try:
        memory_ns = min(memory_latency_ns(cpu) for cpu in cpus[:2])
    except ThreadError as error:
        refused = str(error)
    else:
        matrix = measure_matrix(len(cpus), round_trip, memory_ns, together, seconds)
    has_figure = ~np.isnan(matrix).all(axis=1) | (len(cpus) == 1)
    return Look(
        tuple(cpus),
        matrix,
        memory_ns,
        tuple(
            tuple(group)
            for group in sharing_groups(matrix, memory_ns, together)
            if has_figure[group[0]]
        ),
        tuple(tuple(group) for group in same_core_groups(matrix, memory_ns) if len(group) > 1),
        refused,
    )


def sharing_l2(l2_ids: Sequence[int | None]) -> list[frozenset[int]]:
    """The places of cores with the same L2, for `look`.

    >>> sharing_l2([0, 0, 1, None, None])
    [frozenset({0, 1})]
    """
    places = sorted((number, place) for place, number in enumerate(l2_ids) if number is not None)
    groups = (
        frozenset(place for _, place in same)
        for _, same in itertools.groupby(places, lambda it: it[0])
    )
    return [group for group in groups if len(group) > 1]
