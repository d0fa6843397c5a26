"""How runs get shorter with more cores: which widths to measure, and what they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from deepsched.machine.contention import ContentionMonitor, is_contended
from deepsched.machine.latency import GAP
from deepsched.models.measurements import Measurements
from deepsched.scheduling.group_tree import GroupTree

# More cores that shorten a run by less than this are of no use: they serve others better.
_MIN_GAIN = 0.05

_SECONDS = 0.05
"""Time to measure one width, after a run that fills the arena."""

_KIND = "run lengths"
"""Kind of the cache's measurement; its value is ns by number of cores, and how far apart these
were."""


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
    trips_ns: Sequence[float] = (),
) -> list[int]:
    """Run length on each group of the tree while nothing else runs, in ns.

    Args:
        measure: called with a group and the seconds to measure for; returns the run length in ns.
        measurements: where the result is kept, unless others took the CPUs meanwhile; None measures
            each time.
        layout: what the result depends on besides the model, as JSON.
        cpus: the CPUs that runs use; None for all that this process may use.
        trips_ns: how far apart these are now (deepsched.machine.state.neighbour_trips_ns). What was
            kept while they were nearer or farther is measured again.
    """
    kept = None if measurements is None else _kept(measurements.read(_KIND, layout))
    if kept is not None and not _has_moved(kept[1], trips_ns):
        by_width = kept[0]
    else:
        by_width, others_share = _measure_widths(tree, measure, cpus)
        if measurements is not None:
            # JSON has no NaN, which stands for a core that others kept busy.
            trips = [None if math.isnan(trip) else trip for trip in trips_ns]
            measurements.write(_KIND, layout, {"ns": by_width, "trips_ns": trips}, others_share)
    return [by_width[tree.num_cores(group)] for group in range(len(tree.leaves))]


def _has_moved(before: Sequence[float | None], now: Sequence[float]) -> bool:
    """Whether the host has put cores nearer together or farther apart; False where that is not
    known."""
    return any(
        trip is not None
        and trip * seen > 0  # no NaN
        and not 1 / GAP < trip / seen < GAP
        for trip, seen in zip(before, now, strict=False)
    )


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


def _kept(found: object) -> tuple[dict[int, int], list[float | None]] | None:
    """A measurement as it was kept, JSON: ns by width, and trips; None if it is none."""
    try:
        by_width = {int(width): int(ns) for width, ns in found["ns"].items()}  # type: ignore[index]
        trips = [None if it is None else float(it) for it in found["trips_ns"]]  # type: ignore[index]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return (by_width, trips) if by_width and min(by_width.values()) > 0 else None
