"""Traces drawn in characters: a line for each stream, a bracket for each run."""

from __future__ import annotations

from collections.abc import Sequence

from deepsched.timeline.records import TraceRecords
from deepsched.timeline.window import Window, summary, windows


def render(traces: Sequence[TraceRecords], width: int = 100) -> str:
    """The traces one below the other, on one time scale; `width` characters to a line.

    >>> from deepsched import Scheduler
    >>> render([TraceRecords(Scheduler.single_stream, (), 0, 10**9)])
    'single_stream: no request ran'
    """
    return "\n\n".join("\n".join(_lines(window, width)) for window in windows(traces))


def _lines(window: Window, width: int) -> list[str]:
    trace = window.trace
    labels = [
        f"stream {stream.index}, {len(stream.cores)} core{'s' * (len(stream.cores) > 1)} │"
        for stream in trace.streams
    ]
    left = max(map(len, labels), default=0)
    room = max(10, width - left - 1)
    runs = window.runs()
    if not runs:
        return [summary(trace)]
    rows = [[" "] * room for _ in labels]
    for run in runs:
        it = run.record
        assert it.stream is not None
        begin = run.begin_ns * room // window.length_ns
        end = max(begin + 1, run.end_ns * room // window.length_ns)
        for row in rows[it.stream : it.stream + it.num_streams]:
            row[begin:end] = _bracket(run.label, end - begin)
    return [
        summary(trace),
        *(f"{label:>{left}}{''.join(row)}│" for label, row in zip(labels, rows, strict=True)),
        " " * left + f"0 ms{f'{window.length_ns / 1e6:.3g} ms':>{room - 4}}",
    ]


def _bracket(label: str, width: int) -> str:
    if width == 1:
        return "▪"
    return f"[{label if len(label) <= width - 2 else '':─<{width - 2}}]"
