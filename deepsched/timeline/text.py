"""The same picture in characters."""

from __future__ import annotations

from collections.abc import Sequence

from deepsched.timeline.trace import Trace
from deepsched.timeline.window import Window, summary, windows


def render(traces: Sequence[Trace], width: int = 100) -> str:
    """A line for each stream, a bracket for each request; `width` characters to a line.

    >>> from deepsched import Scheduler
    >>> render([Trace(Scheduler.single_stream, (), 0, 10**9)])
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
    boxes = window.boxes()
    if not boxes:
        return [summary(trace)]
    rows = [[" "] * room for _ in labels]
    for box in boxes:
        it = box.record
        assert it.stream is not None
        begin = box.begin_ns * room // window.length_ns
        end = max(begin + 1, box.end_ns * room // window.length_ns)
        for row in rows[it.stream : it.stream + it.num_streams]:
            row[begin:end] = _bracket(box.number, end - begin)
    return [
        summary(trace),
        *(f"{label:>{left}}{''.join(row)}│" for label, row in zip(labels, rows, strict=True)),
        " " * left + f"0 ms{f'{window.length_ns / 1e6:.3g} ms':>{room - 4}}",
    ]


def _bracket(number: int, width: int) -> str:
    if width == 1:
        return "▪"
    label = str(number) if len(str(number)) <= width - 2 else ""
    return f"[{label:─<{width - 2}}]"
