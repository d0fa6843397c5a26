"""Traces in Chrome's trace event format, which Perfetto reads too.

The format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deepsched.timeline.levels import Level, busy_cores, queue_depth
from deepsched.timeline.records import RequestRecord, TraceRecords
from deepsched.version import __version__

Event = dict[str, Any]

# The viewer's processes, which it shows in this order; each trace has these four.
_LOAD, _STREAMS, _GROUPS, _WAITING = range(4)
_TITLES = ("load", "streams", "core groups", "waiting")


def to_perfetto(traces: Sequence[TraceRecords]) -> dict[str, Any]:
    """The JSON of one timeline with all traces. Each begins at 0, which is when it began or its
    first request was submitted, whichever is earlier."""
    events = [event for i, trace in enumerate(traces) for event in _events(trace, 1 + 4 * i)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "producer": f"deepsched {__version__}",
            "dropped": sum(trace.num_dropped for trace in traces),
        },
    }


def _events(trace: TraceRecords, first_pid: int) -> Iterator[Event]:
    for which, title in enumerate(_TITLES):
        pid = first_pid + which
        yield _meta("process_name", pid, 0, name=f"{trace.scheduler}: {title}")
        yield _meta("process_sort_index", pid, 0, sort_index=pid)
    pid = first_pid + _STREAMS
    for stream in trace.streams:
        yield from _row(pid, stream.index, f"stream {stream.index}, CPUs {_join(stream.cpus)}")
    groups = sorted(
        {
            (it.stream, it.num_streams)
            for it in trace
            if it.stream is not None and it.num_streams > 1
        }
    )
    pid = first_pid + _GROUPS
    for tid, (low, width) in enumerate(groups):
        yield from _row(pid, tid, f"streams {low} to {low + width - 1}")
    for number, it in enumerate(trace):
        yield from _request(trace, number, it, first_pid, groups)
    yield from _counter(trace, "requests waiting", queue_depth(trace), first_pid + _LOAD)
    yield from _counter(trace, "busy cores", busy_cores(trace), first_pid + _LOAD)


def _request(
    trace: TraceRecords, number: int, it: RequestRecord, first_pid: int, groups: list[Any]
) -> Iterator[Event]:
    args = {
        "request": number,
        "model": it.model,
        "batch": it.batch_size,
        "outcome": it.outcome,
        "ran": "on a worker" if it.by_worker else "inline",
        "waited_ms": it.waited_ns / 1e6,
        "together": it.num_together,
    }
    if it.waited_ns:
        # Async events ("b", "e"), since waits overlap and slices of one row must nest.
        # Local ids: the same number is another request in another trace.
        edge = {
            "cat": "waiting",
            "name": it.model,
            "id2": {"local": hex(number)},
            "pid": first_pid + _WAITING,
            "tid": 0,
        }
        until = it.submitted_ns + it.waited_ns
        yield {"ph": "b", "ts": _us(trace, it.submitted_ns), **edge, "args": args}
        yield {"ph": "e", "ts": _us(trace, until), **edge}
    numbers = trace.batches.get(number)
    if it.started_ns is None or it.stream is None or numbers is None:
        return  # it did not run, or is in the slice of the first of its run
    if len(numbers) > 1:
        args = {**args, "requests": numbers}
    slice_ = {
        "ph": "X",
        "cat": "running",
        "name": it.model if len(numbers) == 1 else f"{it.model} × {len(numbers)}",
        "ts": _us(trace, it.started_ns),
        "dur": it.ran_ns / 1e3,
        "args": args,
    }
    for stream in range(it.stream, it.stream + it.num_streams):
        yield {**slice_, "pid": first_pid + _STREAMS, "tid": stream}
    if it.num_streams > 1:
        tid = groups.index((it.stream, it.num_streams))
        yield {**slice_, "pid": first_pid + _GROUPS, "tid": tid}


def _counter(trace: TraceRecords, name: str, found: list[Level], pid: int) -> Iterator[Event]:
    for time, level in [(_origin_ns(trace), 0), *found]:
        ts = _us(trace, time)
        yield {"ph": "C", "name": name, "pid": pid, "ts": ts, "args": {name: level}}


def _row(pid: int, tid: int, name: str) -> Iterator[Event]:
    yield _meta("thread_name", pid, tid, name=name)
    yield _meta("thread_sort_index", pid, tid, sort_index=tid)


def _meta(what: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _us(trace: TraceRecords, time_ns: int) -> float:
    return (time_ns - _origin_ns(trace)) / 1e3


def _origin_ns(trace: TraceRecords) -> int:
    """The time that is shown as 0. Requests may have been queued when the trace began, and viewers
    drop what is before 0."""
    return min(trace.began_ns, trace[0].submitted_ns) if len(trace) else trace.began_ns


def _join(cpus: tuple[int, ...]) -> str:
    return ", ".join(map(str, cpus))
