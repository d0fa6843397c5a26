"""Queue depth and busy cores over the time of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

from deepsched.timeline.records import TraceRecords

Level = tuple[int, int]
"""A time in ns, and the value from then on."""


def levels(spans: Iterable[tuple[int, int, int]]) -> list[Level]:
    """The total weight of the (begin, end, weight) spans in progress, at each time it changes.

    >>> levels([(10, 30, 1), (20, 30, 4)])
    [(10, 1), (20, 5), (30, 0)]
    """
    changes = []
    for begin, end, weight in spans:
        if begin < end:
            changes += [(begin, weight), (end, -weight)]
    changes.sort()
    found: list[Level] = []
    level = 0
    for time, simultaneous in groupby(changes, itemgetter(0)):
        before, level = level, level + sum(change for _, change in simultaneous)
        if level != before:
            found.append((time, level))
    return found


def queue_depth(trace: TraceRecords) -> list[Level]:
    """Number of requests in the queue."""
    return levels((it.submitted_ns, it.submitted_ns + it.waited_ns, 1) for it in trace)


def busy_cores(trace: TraceRecords) -> list[Level]:
    """Number of cores that are running a request."""
    return levels(
        (it.started_ns, it.ended_ns, trace.num_cores(it))
        for it in (trace[first] for first in trace.batches)  # once for each run
        if it.started_ns is not None
    )
