"""How runs get shorter with more cores: which widths to measure, and which of them help."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from deepsched.machine.contention import ContentionMonitor, is_contended
from deepsched.models.measurements import Measurements
from deepsched.scheduling.group_tree import GroupTree

# A wider group that shortens a run by less than this is not used: its cores serve others better.
_MIN_GAIN = 0.05

_SECONDS = 0.05
"""Time to measure one width, after a run that fills the arena."""

_KIND = "run lengths"
"""Kind of the cache's measurement; its value is ns by number of cores."""


def widths(most: int) -> list[int]:
    """Numbers of cores to measure: powers of two, and all there are.

    >>> widths(6)
    [1, 2, 4, 6]
    """
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def useful_cores(times: Mapping[int, float]) -> int:
    """Number of cores beyond which a run gains too little. `times`: run length by cores.

    >>> useful_cores({1: 10.0, 2: 6.0, 4: 5.9, 8: 5.8})
    2
    """
    best = min(times.values())
    return next(cores for cores in sorted(times) if times[cores] <= best / (1 - _MIN_GAIN))


def run_lengths(
    tree: GroupTree,
    measure: Callable[[int, float], int],
    measurements: Measurements | None,
    layout: object,
    cpus: Collection[int] | None,
) -> list[int]:
    """Run length on each group of the tree, in ns; 0 for groups that are too wide to be of use.

    Args:
        measure: called with a group and the seconds to measure for; returns the run length in ns.
        measurements: where the result is kept, unless others took the CPUs meanwhile; None measures
            each time.
        layout: what the result depends on besides the model, as JSON.
        cpus: the CPUs that runs use; None for all that this process may use.
    """
    by_width = None if measurements is None else _by_width(measurements.read(_KIND, layout))
    if by_width is None:
        by_width, others_share = _measure_widths(tree, measure, cpus)
        if measurements is not None:
            measurements.write(_KIND, layout, by_width, others_share)
    return useful(tree, by_width)


def _measure_widths(
    tree: GroupTree, measure: Callable[[int, float], int], cpus: Collection[int] | None
) -> tuple[dict[int, int], float | None]:
    """Run length by width, and the share of a CPU that others took meanwhile; None if unknown.

    Others are other processes, and threads of this one that do other work: another model that is
    loaded beside this one. All CPU time beyond what the measured threads can have used is theirs.
    """
    by_width: dict[int, int] = {}
    contention = ContentionMonitor(cpus)
    began, used_before = time.monotonic(), time.process_time()
    beside = 0.0  # seconds that the other threads of wide runs had
    for group in range(len(tree.leaves)):
        width = tree.num_cores(group)
        if by_width.get(width, 0) == 0:
            before = time.monotonic()
            by_width[width] = measure(group, _SECONDS)
            beside += (width - 1) * (time.monotonic() - before)
            contention.sample()
    used, seconds = time.process_time() - used_before, time.monotonic() - began
    by_threads = (used - seconds - beside) / max(seconds, 1e-9)
    by_processes = contention.others_share()
    if by_processes is None and not is_contended(by_threads):
        return by_width, None
    return by_width, max(by_processes or 0.0, min(1.0, by_threads))


def useful(tree: GroupTree, by_width: dict[int, int]) -> list[int]:
    """`by_width` by group; 0 for a group that gains too little over the groups merged into it, and
    for all that contain it.

    >>> from deepsched import Topology, partition
    >>> from deepsched.scheduling.group_tree import tree_of
    >>> tree = tree_of(partition(Topology.synthetic(1, 1, 1, 4), num_streams=4).streams)
    >>> useful(tree, {1: 100, 2: 60, 4: 58})
    [100, 100, 100, 100, 60, 60, 0]
    """
    lengths = [by_width[tree.num_cores(group)] for group in range(len(tree.leaves))]
    for group, parent in enumerate(tree.parents):  # narrower groups come first
        if parent >= 0 and (
            lengths[group] == 0 or lengths[parent] > (1 - _MIN_GAIN) * lengths[group]
        ):
            lengths[parent] = 0
    return lengths


def _by_width(kept: object) -> dict[int, int] | None:
    """A measurement as it was kept, JSON; None if it is none."""
    try:
        found = {int(width): int(ns) for width, ns in kept.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        return None
    return found if found and min(found.values()) > 0 else None
