"""Which part of a trace a picture shows, and what is in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from deepsched.timeline.trace import RequestRecord, Trace

_NUM_RUNS = 6  # side by side in a picture: few enough to be told apart, enough to see an order


class Box(NamedTuple):
    """A request in a picture. Times in ns since the window's begin, cut at its ends."""

    number: int
    """Of the request in the trace."""
    record: RequestRecord
    begin_ns: int
    end_ns: int


class Window(NamedTuple):
    """A part of a trace."""

    trace: Trace
    begin_ns: int
    length_ns: int

    def boxes(self) -> list[Box]:
        """The runs in it, in the order of their submission."""
        found = []
        for number, it in enumerate(self.trace):
            if it.started_ns is None:
                continue
            begin = max(0, it.started_ns - self.begin_ns)
            end = min(self.length_ns, it.ended_ns - self.begin_ns)
            if begin < end:
                found.append(Box(number, it, begin, end))
        return found


def windows(traces: Sequence[Trace]) -> list[Window]:
    """A window for each, all of one length: about six of the longest runs, from the middle on."""
    typical = [
        statistics.median(it.ran_ns for it in runs)
        for trace in traces
        if (runs := [it for it in trace if it.started_ns is not None])
    ]
    if not typical:
        return [Window(trace, trace.began_ns, 1) for trace in traces]
    length = max(1, round(_NUM_RUNS * max(typical)))
    return [Window(trace, _begin(trace, length), length) for trace in traces]


def _begin(trace: Trace, length_ns: int) -> int:
    starts = sorted(it.started_ns for it in trace if it.started_ns is not None)
    if not starts:
        return trace.began_ns
    last = max(it.ended_ns for it in trace) - length_ns
    from_middle = starts[len(starts) // 2 :]
    fits = [time for time in from_middle if time <= last] or [t for t in starts if t <= last]
    return fits[0] if fits else starts[0]


def summary(trace: Trace) -> str:
    """One line on a trace.

    >>> from deepsched import Scheduler
    >>> summary(Trace(Scheduler.single_stream, (), 0, 10**9))
    'single_stream: no request ran'
    """
    runs = [it for it in trace if it.started_ns is not None]
    if not runs:
        return f"{trace.scheduler}: no request ran"
    running = statistics.median(it.ran_ns for it in runs)
    waiting = statistics.median(it.waited_ns for it in runs)
    streams = f"{len(trace.streams)} stream{'s' * (len(trace.streams) != 1)}"
    return (
        f"{trace.scheduler}, {streams}: {len(runs) / trace.seconds:.4g} requests/s, of which the "
        f"median waited {waiting / 1e6:.3g} ms and ran {running / 1e6:.3g} ms"
        + (f"; {trace.num_waiting} still waited at the end" if trace.num_waiting else "")
    )
