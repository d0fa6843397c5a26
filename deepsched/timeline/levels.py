"""How many at a time: the queue's depth and the busy cores, over the time of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

from deepsched.timeline.trace import Trace

Level = tuple[int, int]
"""(from this time on, in ns; so many)"""


def levels(spans: Iterable[tuple[int, int, int]]) -> list[Level]:
    """The sum of the weights of the (begin, end, weight) that a time lies in, at each change.

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
    for time, together in groupby(changes, itemgetter(0)):
        before, level = level, level + sum(change for _, change in together)
        if level != before:
            found.append((time, level))
    return found


def queue_depth(trace: Trace) -> list[Level]:
    """How many requests wait."""
    return levels((it.submitted_ns, it.submitted_ns + it.waited_ns, 1) for it in trace)


def busy_cores(trace: Trace) -> list[Level]:
    """How many cores belong to a request that runs."""
    return levels(
        (it.started_ns, it.ended_ns, trace.num_cores(it))
        for it in trace
        if it.started_ns is not None
    )
