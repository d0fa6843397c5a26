"""Trace: the records of `Context.trace`, and the ways to save and draw them."""

from __future__ import annotations

import json
from pathlib import Path

from deepsched.formatting import counted
from deepsched.timeline.perfetto import to_perfetto
from deepsched.timeline.records import TraceRecords
from deepsched.timeline.svg import draw
from deepsched.timeline.text import render


class Trace(TraceRecords):
    """The requests that ended while a context was traced, in order of submission.

    Created by `Context.trace`, and filled when its block ends. Not in it are requests that were
    never queued (QueueFull, or a timeout that passed before there was room) and those that have not
    ended: `num_waiting` counts those still in the queue, and the drawn queue depth is without them.

    Example:
        >>> from deepsched import Engine
        >>> from deepsched.benchmark import bundled_model
        >>> with Engine(bundled_model("squeezenet")) as engine, engine.context.trace() as trace:
        ...     outputs = engine.run(engine.generate_random_inputs())
        >>> [(record.model, record.stream, record.outcome) for record in trace]
        [('light_squeezenet', 0, 'done')]
    """

    def __repr__(self) -> str:
        requests, streams = counted(len(self), "request"), counted(len(self.streams), "stream")
        return f"<Trace of {requests}, {self.scheduler}, {streams}>"

    def save(self, path: str | Path) -> None:
        """Writes a timeline in Chrome's trace format, for https://ui.perfetto.dev or
        chrome://tracing: a row for each stream and each core group, a slice for each request,
        counters for the queue depth and the busy cores.

        Raises:
            OSError: `path` cannot be written.
        """
        Path(path).write_text(json.dumps(to_perfetto([self])), encoding="utf-8")

    def save_svg(self, path: str | Path) -> None:
        """Draws cores over time, for a part of the trace short enough to tell requests apart.

        Raises:
            OSError: `path` cannot be written.
        """
        Path(path).write_text(draw([self]), encoding="utf-8")

    def text(self, width: int = 100) -> str:
        """The same drawing in characters, `width` to a line."""
        return render([self], width)
