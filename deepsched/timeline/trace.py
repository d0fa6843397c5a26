"""Trace and RequestRecord: what `Context.trace` collects."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from deepsched.machine.partition import Stream
from deepsched.runtime.request import OUTCOMES
from deepsched.runtime.tracing import ENTRY
from deepsched.scheduler import Scheduler

_CHUNK = 4096


class TracedModel(NamedTuple):
    """What a trace says of an engine's model."""

    name: str
    """The file's name without its suffix; "model" if it came from memory."""
    batch_size: int | None
    """None: not fixed."""


class RequestRecord(NamedTuple):
    """When and where one request ran; nanoseconds of the monotonic clock."""

    model: str
    batch_size: int | None
    """None: the engine does not fix it."""
    outcome: str
    """"done", "failed", "expired", "cancelled", or "closed": refused by an engine that was being
    closed."""
    by_worker: bool
    """False: inline, on the thread that called."""
    stream: int | None
    """The stream it ran on, or the first of them; None if it never ran."""
    num_streams: int
    """How many streams it took: more than one with the elastic scheduler only; 0: it never ran."""
    submitted_ns: int
    started_ns: int | None
    """None: it never ran."""
    ended_ns: int

    @property
    def waited_ns(self) -> int:
        """From the call until its run began, or until it ended without one."""
        return (self.ended_ns if self.started_ns is None else self.started_ns) - self.submitted_ns

    @property
    def ran_ns(self) -> int:
        """Inside ONNX Runtime; 0: it never ran."""
        return 0 if self.started_ns is None else self.ended_ns - self.started_ns


class Trace(Sequence[RequestRecord]):
    """The requests that ended while a context was traced, by the time that they were submitted.

    Made by `Context.trace`, and filled when its block ends. Requests that no queue took (QueueFull,
    a timeout that passed before there was room) are not among them, nor those that have not ended:
    `num_waiting` says how many still wait, and the depth of the queue is without them.

    Example:
        >>> from deepsched import Engine
        >>> from deepsched.benchmark import bundled_model
        >>> with Engine(bundled_model("squeezenet")) as engine, engine.context.trace() as trace:
        ...     outputs = engine.run(engine.generate_random_inputs())
        >>> [(record.model, record.stream, record.outcome) for record in trace]
        [('light_squeezenet', 0, 'done')]
    """

    def __init__(
        self, scheduler: Scheduler, streams: tuple[Stream, ...], began_ns: int, ended_ns: int = 0
    ) -> None:
        self.scheduler = scheduler
        self.streams = streams
        self.began_ns = began_ns
        self.ended_ns = ended_ns
        self.num_dropped = 0
        """Requests that ended after the trace was full."""
        self.num_waiting = 0
        """Requests that still waited when the trace ended. They are not in it."""
        self._entries = np.zeros(0, ENTRY)
        self._models: Mapping[int, TracedModel] = {}
        self._ranges: Sequence[tuple[int, int]] = ()

    @overload
    def __getitem__(self, index: int) -> RequestRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[RequestRecord]: ...
    def __getitem__(self, index: int | slice) -> RequestRecord | list[RequestRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} requests, {self.scheduler}, {len(self.streams)} streams>"

    @property
    def seconds(self) -> float:
        """How long was traced."""
        return (self.ended_ns - self.began_ns) / 1e9

    def num_cores(self, record: RequestRecord) -> int:
        """How many cores a request ran on."""
        if record.stream is None:
            return 0
        streams = self.streams[record.stream : record.stream + record.num_streams]
        return sum(len(stream.cores) for stream in streams)

    def save(self, path: str | Path) -> None:
        """Writes a timeline in Chrome's trace format, for https://ui.perfetto.dev or
        chrome://tracing: a row for each stream and each core group, a slice for each request,
        counters for the queue's depth and the busy cores.

        Raises:
            OSError: `path` cannot be written.
        """
        from deepsched.timeline.perfetto import to_perfetto

        Path(path).write_text(json.dumps(to_perfetto([self])), encoding="utf-8")

    def save_svg(self, path: str | Path) -> None:
        """Draws cores over time, for a part of the trace in which requests can be told apart.

        Raises:
            OSError: `path` cannot be written.
        """
        from deepsched.timeline.svg import draw

        Path(path).write_text(draw([self]), encoding="utf-8")

    def text(self, width: int = 100) -> str:
        """The same picture in characters, `width` to a line."""
        from deepsched.timeline.text import render

        return render([self], width)

    def _fill(
        self,
        entries: bytes,
        num_dropped: int,
        num_waiting: int,
        models: Mapping[int, TracedModel],
        ranges: Sequence[tuple[int, int]],
    ) -> None:
        """`entries`: of tracing.ENTRY. `ranges`: of each core group, the first of its streams and
        the one after the last."""
        self.ended_ns = time.monotonic_ns()
        self.num_dropped = num_dropped
        self.num_waiting = num_waiting
        self._entries, self._models, self._ranges = np.frombuffer(entries, ENTRY), models, ranges

    @cached_property
    def _records(self) -> list[RequestRecord]:
        """Made when they are first asked for: a trace that ends keeps nobody waiting."""
        entries = self._entries
        ordered = entries[np.argsort(entries["submitted_ns"], kind="stable")]
        return [
            self._record(*entry)
            # In chunks: each is made of Python objects in one go, with the GIL held.
            for start in range(0, len(ordered), _CHUNK)
            for entry in ordered[start : start + _CHUNK].tolist()
        ]

    def _record(
        self,
        submitted_ns: int,
        started_ns: int,
        ended_ns: int,
        number: int,
        group: int,
        stage: int,
        by_worker: int,
    ) -> RequestRecord:
        model = self._models[number]
        low, high = self._ranges[group] if started_ns else (0, 0)
        return RequestRecord(
            model.name,
            model.batch_size,
            OUTCOMES[stage],
            bool(by_worker),
            low if started_ns else None,
            high - low,
            submitted_ns,
            started_ns or None,
            ended_ns,
        )
