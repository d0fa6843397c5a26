"""The data of a trace: a record of each request, and the streams that served them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

from deepsched.lazy import cached_property
from deepsched.machine.partition import Stream
from deepsched.runtime.request import OUTCOMES
from deepsched.runtime.tracing import ENTRY
from deepsched.scheduler import Scheduler

_CHUNK = 4096


class TracedModel(NamedTuple):
    """An engine's model, as a trace names it."""

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
    """False: inline, on the calling thread."""
    stream: int | None
    """The stream it ran on, or the first of them; None if it never ran."""
    num_streams: int
    """Number of streams it ran on: more than 1 with the elastic scheduler only; 0: it never ran."""
    num_together: int
    """Number of requests that its run served, itself included; 0: it never ran."""
    submitted_ns: int
    started_ns: int | None
    """None: it never ran."""
    ended_ns: int

    @property
    def waited_ns(self) -> int:
        """Time in the queue: from the call until its run began, or until it ended without one."""
        return (self.ended_ns if self.started_ns is None else self.started_ns) - self.submitted_ns

    @property
    def ran_ns(self) -> int:
        """Time inside ONNX Runtime; 0: it never ran."""
        return 0 if self.started_ns is None else self.ended_ns - self.started_ns


class TraceRecords(Sequence[RequestRecord]):
    """The records of a trace in order of submission, and the streams that served the requests.

    What draws or saves a trace reads this; `Trace`, which users hold, adds the drawing and saving.
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
        """Requests still in the queue when the trace ended. They are not in it."""
        self._entries = np.zeros(0, ENTRY)
        self._models: Mapping[int, TracedModel] = {}
        self._stream_ranges: Sequence[tuple[int, int]] = ()

    @overload
    def __getitem__(self, index: int) -> RequestRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[RequestRecord]: ...
    def __getitem__(self, index: int | slice) -> RequestRecord | list[RequestRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def seconds(self) -> float:
        """Length of the trace, in seconds."""
        return (self.ended_ns - self.began_ns) / 1e9

    @cached_property
    def batches(self) -> dict[int, list[int]]:
        """The requests of each run, by the first of them: their places in the trace."""
        first_of: dict[tuple[int | None, int | None], int] = {}
        found: dict[int, list[int]] = {}
        for number, it in enumerate(self):
            if it.num_together:
                first = number
                if it.num_together > 1:
                    first = first_of.setdefault((it.stream, it.started_ns), number)
                found.setdefault(first, []).append(number)
        return found

    def num_cores(self, record: RequestRecord) -> int:
        """Number of cores that a request ran on; 0 if it never ran."""
        if record.stream is None:
            return 0
        streams = self.streams[record.stream : record.stream + record.num_streams]
        return sum(len(stream.cores) for stream in streams)

    def _fill(
        self,
        entries: bytes,
        num_dropped: int,
        num_waiting: int,
        models: Mapping[int, TracedModel],
        stream_ranges: Sequence[tuple[int, int]],
    ) -> None:
        """Takes over what the tracer collected.

        Private because users hold a trace; the context that made it calls this once.

        Args:
            entries: an array of tracing.ENTRY, as bytes, in the order in which requests ended.
            models: by the numbers in the entries.
            stream_ranges: for each core group, its first stream and the one after its last.
        """
        self.ended_ns = time.monotonic_ns()
        self.num_dropped = num_dropped
        self.num_waiting = num_waiting
        self._entries = np.frombuffer(entries, ENTRY)
        self._models = models
        self._stream_ranges = stream_ranges

    @cached_property
    def _records(self) -> list[RequestRecord]:
        """Made on first use: the end of a `with context.trace()` block must not block its thread
        for as long as a million Python objects take."""
        entries = self._entries
        ordered = entries[np.argsort(entries["submitted_ns"], kind="stable")]
        return [
            self._record(*entry)
            # In chunks: tolist() makes all its Python objects without releasing the GIL.
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
        num_together: int,
    ) -> RequestRecord:
        model = self._models[number]
        low, high = self._stream_ranges[group] if started_ns else (0, 0)
        return RequestRecord(
            model.name,
            model.batch_size,
            OUTCOMES[stage],
            bool(by_worker),
            low if started_ns else None,
            high - low,
            num_together,
            submitted_ns,
            started_ns or None,
            ended_ns,
        )
