"""The part of a trace that a drawing shows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from deepsched.timeline.records import RequestRecord, TraceRecords

_NUM_RUNS = 6  # one after another in a drawing: few enough to label, enough to show the order
_ENOUGH_FOR_MEDIAN = 6


class VisibleRun(NamedTuple):
    """A run, clipped to a window. Times in ns since the window's begin."""

    numbers: list[int]
    """Of its requests in the trace."""
    record: RequestRecord
    """The first of them."""
    begin_ns: int
    end_ns: int

    @property
    def label(self) -> str:
        """The first request's number, and how many came with it.

        >>> VisibleRun([7, 8, 11], None, 0, 1).label
        '7+2'
        """
        more = len(self.numbers) - 1
        return f"{self.numbers[0]}+{more}" if more else str(self.numbers[0])


class Window(NamedTuple):
    """A part of a trace."""

    trace: TraceRecords
    begin_ns: int
    length_ns: int

    def runs(self) -> list[VisibleRun]:
        """The runs in it, in order of their first request's submission."""
        found = []
        for first, numbers in self.trace.batches.items():
            it = self.trace[first]
            if it.started_ns is None:
                continue
            begin = max(0, it.started_ns - self.begin_ns)
            end = min(self.length_ns, it.ended_ns - self.begin_ns)
            if begin < end:
                found.append(VisibleRun(numbers, it, begin, end))
        return found


def windows(traces: Sequence[TraceRecords]) -> list[Window]:
    """A window for each trace, all of one length so that the drawings compare: six median runs of
    the slowest trace, from the middle of each trace on."""
    median_runs = [
        statistics.median(it.ran_ns for it in runs)
        for trace in traces
        if (runs := [it for it in trace if it.started_ns is not None])
    ]
    if not median_runs:
        return [Window(trace, trace.began_ns, 1) for trace in traces]
    length = max(1, round(_NUM_RUNS * max(median_runs)))
    return [Window(trace, _begin(trace, length), length) for trace in traces]


def _begin(trace: TraceRecords, length_ns: int) -> int:
    """The first run from the middle on after which the trace fills a window; else an earlier one.

    The middle, since a trace begins with empty queues and often with a first, slow run.
    """
    starts = sorted(it.started_ns for it in trace if it.started_ns is not None)
    if not starts:
        return trace.began_ns
    last = max(it.ended_ns for it in trace) - length_ns
    from_middle = starts[len(starts) // 2 :]
    fits = [time for time in from_middle if time <= last] or [t for t in starts if t <= last]
    return fits[0] if fits else starts[0]


def summary(trace: TraceRecords) -> str:
    """A line with the throughput, and the medians of waiting and running.

    >>> from deepsched import Scheduler
    >>> summary(TraceRecords(Scheduler.single_stream, (), 0, 10**9))
    'single_stream: no request ran'
    """
    runs = [it for it in trace if it.started_ns is not None]
    if not runs:
        return f"{trace.scheduler}: no request ran"
    running = statistics.median(it.ran_ns for it in runs)
    waiting = statistics.median(it.waited_ns for it in runs)
    streams = f"{len(trace.streams)} stream{'s' * (len(trace.streams) != 1)}"
    few = f" of {len(runs)} requests" if len(runs) < _ENOUGH_FOR_MEDIAN else ""
    return (
        f"{trace.scheduler}, {streams}: {len(runs) / trace.seconds:.4g} requests/s; medians{few}: "
        f"waited {waiting / 1e6:.3g} ms, ran {running / 1e6:.3g} ms"
        + (f"; {trace.num_waiting} still queued at the end" if trace.num_waiting else "")
    )
