"""Traces drawn as an SVG: a lane for each core, time to the right, a box for each run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from deepsched.formatting import xml_text
from deepsched.timeline.levels import queue_depth
from deepsched.timeline.records import TraceRecords
from deepsched.timeline.window import VisibleRun, Window, summary, windows

# Okabe and Ito's palette for colour-blind readers, lightened so that dark text is legible on all.
_COLOURS = ("#8ecae6", "#f4c27a", "#9bd8b5", "#f2a6b3", "#c9b6e4", "#f3e58c", "#b5cf9f", "#d9c2a7")

_WIDTH, _LEFT, _RIGHT = 960, 130, 20
_PLOT = _WIDTH - _LEFT - _RIGHT
_TOP, _HEADER, _QUEUE, _AXIS, _GAP = 10, 26, 40, 34, 14
_MAX_HEIGHT = 640  # of the lanes of one trace
_LANE = 26


def draw(traces: Sequence[TraceRecords]) -> str:
    """An SVG file with the traces one below the other, on one time scale.

    >>> from deepsched import Scheduler
    >>> draw([TraceRecords(Scheduler.single_stream, (), 0, 10**9)]).startswith("<svg ")
    True
    """
    parts: list[str] = []
    y = float(_TOP)
    for window in windows(traces):
        parts += _panel(window, y)
        y += _height(window.trace) + _GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y:g}" '
            f'viewBox="0 0 {_WIDTH} {y:g}" font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{y:g}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _num_lanes(trace: TraceRecords) -> int:
    return sum(len(stream.cores) for stream in trace.streams)


def _lane_height(trace: TraceRecords) -> float:
    return min(_LANE, _MAX_HEIGHT / max(1, _num_lanes(trace)))


def _height(trace: TraceRecords) -> float:
    return _HEADER + _num_lanes(trace) * _lane_height(trace) + _QUEUE + _AXIS


def _panel(window: Window, top: float) -> Iterator[str]:
    trace = window.trace
    yield _text(10, top + 16, summary(trace), weight="bold")
    lane = _lane_height(trace)
    y = top + _HEADER
    stream_tops = []  # where the first lane of each stream begins
    for stream in trace.streams:
        stream_tops.append(y)
        height = lane * len(stream.cores)
        yield (
            f'<rect x="{_LEFT}" y="{y:g}" width="{_PLOT}" height="{height:g}" '
            f'fill="#f4f4f4" stroke="#999999"/>'
        )
        for k, core in enumerate(stream.cores):
            if k:
                yield _line(_LEFT, y + k * lane, _LEFT + _PLOT, y + k * lane, "#dddddd")
            if lane >= 11:
                cpus = "+".join(map(str, core.cpus))
                yield _text(_LEFT - 6, y + (k + 0.5) * lane + 4, f"CPU {cpus}", anchor="end")
        if height >= 11:
            yield _text(10, y + height / 2 + 4, f"stream {stream.index}")
        y += height
    by_model = len({it.model for it in trace}) > 1
    models = sorted({it.model for it in trace})
    for run in window.runs():
        # Alternating colours keep the runs of a single model apart.
        colour = models.index(run.record.model) if by_model else run.numbers[0]
        yield from _box(window, run, stream_tops, lane, _COLOURS[colour % len(_COLOURS)])
    yield from _queue(window, y)
    yield from _axis(window, y + _QUEUE)


def _box(
    window: Window, run: VisibleRun, stream_tops: list[float], lane: float, colour: str
) -> Iterator[str]:
    it = run.record
    assert it.stream is not None
    x, width = _x(window, run.begin_ns), _x(window, run.end_ns) - _x(window, run.begin_ns)
    y, height = stream_tops[it.stream], lane * window.trace.num_cores(it)
    tooltip = (
        f"{_requests(run.numbers)} of {it.model}: waited {it.waited_ns / 1e6:.3g} ms, "
        f"ran {it.ran_ns / 1e6:.3g} ms {'on a worker' if it.by_worker else 'inline'}, {it.outcome}"
    )
    yield (
        f'<rect x="{x:.1f}" y="{y + 1:g}" width="{max(width, 0.5):.1f}" height="{height - 2:g}" '
        f'rx="3" fill="{colour}" stroke="#555555" stroke-width="0.7">'
        f"<title>{xml_text(tooltip)}</title></rect>"
    )
    label = run.label
    if width > 8 * len(label) + 4 and height >= 11:
        yield _text(x + width / 2, y + height / 2 + 4, label, anchor="middle")


def _requests(numbers: list[int]) -> str:
    """
    >>> _requests([3]), _requests([3, 4, 9])
    ('request 3', 'requests 3, 4, 9 together; the first')
    """
    if len(numbers) == 1:
        return f"request {numbers[0]}"
    return f"requests {', '.join(map(str, numbers))} together; the first"


def _queue(window: Window, top: float) -> Iterator[str]:
    """The queue depth as a step function."""
    points = [(0, 0)]
    for time, level in queue_depth(window.trace):
        time -= window.begin_ns
        if time <= 0:
            points = [(0, level)]
        elif time < window.length_ns:
            points += [(time, points[-1][1]), (time, level)]
    points.append((window.length_ns, points[-1][1]))
    most = max(level for _, level in points)
    yield _text(10, top + _QUEUE / 2 + 8, f"queue depth (max {most})")
    base, room = top + _QUEUE - 4, _QUEUE - 12
    path = " ".join(
        f"{_x(window, time):.1f},{base - room * level / max(1, most):.1f}" for time, level in points
    )
    yield f'<polyline points="{path}" fill="none" stroke="#c0392b" stroke-width="1.5"/>'
    yield _line(_LEFT, base, _LEFT + _PLOT, base, "#999999")


def _axis(window: Window, top: float) -> Iterator[str]:
    length_ms = window.length_ns / 1e6
    step = next(
        step
        for power in itertools.count(-6)
        for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if length_ms / step <= 10
    )
    for k in range(int(length_ms / step) + 1):
        x = _x(window, k * step * 1e6)
        yield _line(x, top - 4, x, top + 2, "#999999")
        yield _text(x, top + 15, f"{k * step:g}{' ms' if k == 0 else ''}", anchor="middle")


def _x(window: Window, time_ns: float) -> float:
    return _LEFT + _PLOT * time_ns / window.length_ns


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#222222">{xml_text(text)}</text>'
    )
