"""Closed and open loop: the threads that send requests, and the times they note.

Closed loop: each caller sends the next request when its last one is answered, so a slow engine is
asked less. Open loop: requests fall due at times of their own, whatever the engine does, and a
request's latency counts from then. A stall is thereby seen by every request that fell due in it,
not just by the one that was under way.

In an open loop the callers take turns at the next request that falls due and wait for its time.
Requests that are due while all callers are busy are not stored anywhere: they are the times that
nobody has taken yet, so an overload takes no memory. Those that `max_late_seconds` have passed
since are dropped and counted, all at once: a rate of millions takes no longer than another.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deepsched.benchmark.arrivals import chunks_of_times
from deepsched.errors import OptionError

Run = Callable[[Any], Any]
Tick = Callable[[int], None]
Times = np.ndarray[Any, np.dtype[np.int64]]


class Clock(Protocol):
    """What a load goes by. A test may bring one that moves only when it is told to."""

    def now_ns(self) -> int:
        """Nanoseconds of a clock that never goes back."""

    def wait_until(self, due_ns: int, stop: threading.Event) -> None:
        """Returns at `due_ns`, or soon after `stop` is set."""


class MonotonicClock:
    """The machine's."""

    now_ns = staticmethod(time.perf_counter_ns)

    def wait_until(self, due_ns: int, stop: threading.Event) -> None:
        """See Clock."""
        while (left := due_ns - time.perf_counter_ns()) > 0 and not stop.is_set():
            if left > _NAP_NS:
                stop.wait((left - _NAP_NS / 2) / 1e9)
            else:
                time.sleep(left / 1e9)  # wakes up closer to its time than an Event


_NAP_NS = 20_000_000
_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Spans:
    """When each request was due, sent and answered, in ns of the clock; of an open loop in the
    order in which they fell due. In a closed loop one is due when it is sent."""

    due: Times
    sent: Times
    ended: Times
    begin: int
    end: int
    """From `begin` to `end` the load was measured."""
    ended_in_all: Times
    """When every request was answered, those outside of this time included."""
    num_dropped: int
    is_interrupted: bool

    def __len__(self) -> int:
        return len(self.ended)


def closed_loop(
    run: Run,
    inputs: Any,
    *,
    callers: int,
    seconds: float,
    warmup_seconds: float,
    clock: Clock,
    on_tick: Tick,
) -> Spans:
    """Calls `run(inputs)` from `callers` threads until the time is over.

    Args:
        on_tick: called about ten times a second with the time in ns, 0 at the end of the warm-up.

    Returns:
        The requests that ended within the time. If none did, all there were, and their time.
    """
    started_at = clock.now_ns()
    begin = started_at + round(warmup_seconds * 1e9)
    end = begin + round(seconds * 1e9)
    notes = [array("q") for _ in range(callers)]
    now_ns = clock.now_ns

    def call(caller: int, stop: threading.Event) -> None:
        note = notes[caller].append
        ended = 0
        while ended < end and not stop.is_set():
            sent = now_ns()
            run(inputs)
            ended = now_ns()
            note(sent)
            note(ended)

    is_interrupted = _on_threads(callers, call, lambda: on_tick(now_ns() - begin))
    if is_interrupted:
        end = min(end, now_ns())
    every = _joined(notes, 2)
    # What ended between begin and end, whenever it was sent: then neither the first requests nor
    # the last, when fewer and fewer callers are under way, bias the rate.
    spans = every[(every[:, 1] > begin) & (every[:, 1] <= end)]
    if not len(spans):
        if is_interrupted:
            raise KeyboardInterrupt
        spans, begin, end = every, int(every[:, 0].min()), int(every[:, 1].max())  # this long
    return Spans(spans[:, 0], spans[:, 0], spans[:, 1], begin, end, every[:, 1], 0, is_interrupted)


def open_loop(
    run: Run,
    inputs: Any,
    *,
    rate: float,
    poisson: bool,
    seed: int,
    callers: int,
    seconds: float,
    max_late_seconds: float,
    clock: Clock,
    on_tick: Tick,
) -> Spans:
    """Calls `run(inputs)` at its own times; `callers` threads at most are under way at once.

    Args:
        on_tick: called about ten times a second with the time in ns, 0 when the first may be due.

    Returns:
        All requests that were due within the time. It ends with the last answer, if that is later.
    """
    chunks = chunks_of_times(rate, seconds, poisson=poisson, seed=seed)
    notes = [array("q") for _ in range(callers)]
    now_ns = clock.now_ns
    # Threads take about 0.1 ms to start; before the first request is due all should be there.
    begin = now_ns() + 5_000_000 + callers * 200_000
    turns = _Turns(chunks, begin, round(max_late_seconds * 1e9), clock)

    def call(caller: int, stop: threading.Event) -> None:
        note = notes[caller].extend
        while (due := turns.take(stop)) is not None:
            clock.wait_until(due, stop)
            if stop.is_set():
                return
            sent = now_ns()
            run(inputs)
            note((due, sent, now_ns()))

    is_interrupted = _on_threads(callers, call, lambda: on_tick(now_ns() - begin))
    every = _joined(notes, 3)
    if not len(every):
        if is_interrupted:
            raise KeyboardInterrupt
        raise OptionError(
            f"no request fell due: {rate:g} a second for {seconds:g} seconds; give a higher rate "
            "or more time"
        )
    end = begin + round(seconds * 1e9)
    end = now_ns() if is_interrupted else max(end, int(every[:, 2].max()))
    due, sent, ended = every[np.argsort(every[:, 0], kind="stable")].T
    return Spans(due, sent, ended, begin, end, ended, turns.num_dropped, is_interrupted)


class _Turns:
    """The times that nobody has taken yet. Each caller takes the next; those that are too late by
    then are dropped, many in one step."""

    def __init__(
        self, chunks: Iterator[np.ndarray], begin: int, max_late: int, clock: Clock
    ) -> None:
        self.num_dropped = 0
        self._chunks = chunks
        self._begin = begin
        self._max_late = max_late
        self._clock = clock
        self._lock = threading.Lock()
        self._times = np.empty(0)
        self._index = 0
        self._has_begun = False

    def take(self, stop: threading.Event) -> int | None:
        """When the next request is due; None: no more are, or `stop` is set."""
        with self._lock:
            while not stop.is_set():
                if self._index == len(self._times):
                    times = next(self._chunks, None)
                    if times is None:
                        return None
                    self._times, self._index = times, 0
                self._drop_late()
                if self._index < len(self._times):
                    due = self._begin + int(self._times[self._index])
                    self._index += 1
                    return due
        return None

    def _drop_late(self) -> None:
        if not self._has_begun:  # the first is sent: there is always a latency
            self._has_begun = True
            return
        earliest = self._clock.now_ns() - self._max_late - self._begin
        if self._times[self._index] < earliest:
            first = self._index
            self._index = int(np.searchsorted(self._times, earliest))
            self.num_dropped += self._index - first


def _joined(notes: list[array[int]], width: int) -> Times:
    parts = [np.frombuffer(note, np.int64).reshape(-1, width) for note in notes if note]
    return np.concatenate(parts) if parts else np.empty((0, width), np.int64)


def _on_threads(
    count: int, call: Callable[[int, threading.Event], None], tick: Callable[[], None]
) -> bool:
    """Runs `call(index, stop)` on `count` threads to their end, and `tick` on this one meanwhile.

    Ctrl-C sets `stop` and waits for the requests under way; a second one does not.

    Returns:
        Whether Ctrl-C came.

    Raises:
        What `call` raises, the first of it; `stop` is set then, too.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def body(index: int) -> None:
        try:
            call(index, stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=body, args=(index,), daemon=True, name=f"caller-{index}")
        for index in range(count)
    ]
    is_interrupted = False
    try:
        _start_and_join(threads, tick)
    except KeyboardInterrupt:
        is_interrupted = True
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    finally:
        stop.set()  # nobody goes on calling behind the back of an error
    if failures:
        raise failures[0]
    return is_interrupted


def _start_and_join(threads: list[threading.Thread], tick: Callable[[], None]) -> None:
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # "can't start new thread"
        raise OptionError(
            f"the system does not start {len(threads)} threads; give fewer --callers"
        ) from error
    for thread in threads:
        while thread.is_alive():
            thread.join(_TICK_SECONDS)
            tick()
