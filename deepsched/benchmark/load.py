"""Load generators, closed and open loop: threads that send requests and record their times.

Closed loop: each caller sends its next request when the last one is answered, so a slow engine is
offered less load. Open loop: requests arrive at times that do not depend on the engine, and latency
counts from the arrival. A stall thereby delays every request that arrives during it, not just the
one in flight: measuring from the send would be coordinated omission.

In an open loop each caller claims the next arrival time and sleeps until then. Arrivals while all
callers are busy are stored nowhere (they are times that nobody has claimed), so an overload takes
no memory. Those older than `max_late_seconds` are dropped and counted, a whole array at a time: a
rate of millions takes no longer than any other.
"""

from __future__ import annotations

import functools
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deepsched.benchmark.arrivals import chunks_of_times
from deepsched.errors import OptionError
from deepsched.runtime.python_thread import PythonThread

Run = Callable[[Any], Any]
Tick = Callable[[int], None]
Times = np.ndarray[Any, np.dtype[np.int64]]


class Clock(Protocol):
    """The clock of a load. Tests bring one that they advance themselves."""

    def now_ns(self) -> int:
        """Monotonic time in ns."""

    def wait_until(self, time_ns: int, stop: threading.Event) -> None:
        """Returns at `time_ns`, or soon after `stop` is set."""


class MonotonicClock:
    """The operating system's monotonic clock."""

    now_ns = staticmethod(time.perf_counter_ns)

    def wait_until(self, time_ns: int, stop: threading.Event) -> None:
        """See Clock."""
        while (left := time_ns - time.perf_counter_ns()) > 0 and not stop.is_set():
            if left > _NAP_NS:
                stop.wait((left - _NAP_NS / 2) / 1e9)
            else:
                time.sleep(left / 1e9)  # wakes up more precisely than Event.wait with a timeout


_NAP_NS = 20_000_000
_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class RequestTimes:
    """When each measured request arrived, was sent and was answered, in ns of the clock.

    An open loop's are in order of arrival. In a closed loop a request arrives when it is sent.
    """

    arrived: Times
    sent: Times
    ended: Times
    begin: int
    end: int
    """The measurement lasted from `begin` to `end`."""
    all_ended: Times
    """When each request was answered, those outside of the measurement included."""
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
) -> RequestTimes:
    """Calls `run(inputs)` from `callers` threads until the time is over.

    Args:
        on_tick: called about ten times a second with the time in ns, 0 at the end of the warm-up.

    Returns:
        The requests that ended within the time. If none did, all of them, over the time they took.
        `begin` and `end` are answers too: the last one before the time, or the start, and the last
        one in it. Of few requests, those that are under way at both ends would bias the rate.
    """
    started_at = clock.now_ns()
    begin = started_at + round(warmup_seconds * 1e9)
    end = begin + round(seconds * 1e9)
    # A flat array for each caller: no lock, and no Python object for each request.
    logs = [array("q") for _ in range(callers)]
    now_ns = clock.now_ns

    def call(caller: int, stop: threading.Event) -> None:
        log = logs[caller].append
        ended = 0
        while ended < end and not stop.is_set():
            sent = now_ns()
            run(inputs)
            ended = now_ns()
            log(sent)
            log(ended)

    is_interrupted = _on_threads(callers, call, lambda: on_tick(now_ns() - begin))
    if is_interrupted:
        end = min(end, now_ns())
    every = _joined(logs, 2)
    # What ended between begin and end, whenever it was sent: otherwise the last requests, when
    # callers finish one by one, would bias the throughput.
    counted = every[(every[:, 1] > begin) & (every[:, 1] <= end)]
    if not len(counted):
        if is_interrupted:
            raise KeyboardInterrupt
        # Each run takes longer than the measurement: report the time that they did take.
        counted, begin, end = every, int(every[:, 0].min()), int(every[:, 1].max())
    else:
        before = every[every[:, 1] <= begin, 1]
        begin = int(before.max()) if len(before) else started_at
        end = int(counted[:, 1].max())
    sent, ended = counted.T
    return RequestTimes(sent, sent, ended, begin, end, every[:, 1], 0, is_interrupted)


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
) -> RequestTimes:
    """Calls `run(inputs)` at each arrival time, from `callers` threads.

    Args:
        on_tick: called about ten times a second with the time in ns, 0 at the first arrival.

    Returns:
        All requests that arrived within the time. It ends with the last answer, if that is later.

    Raises:
        OptionError: no request arrives within the time.
    """
    chunks = chunks_of_times(rate, seconds, poisson=poisson, seed=seed)
    # A flat array for each caller: no lock, and no Python object for each request.
    logs = [array("q") for _ in range(callers)]
    now_ns = clock.now_ns
    # All threads should have started before the first arrival; each takes about 0.1 ms.
    begin = now_ns() + 5_000_000 + callers * 200_000
    queue = _ArrivalQueue(chunks, begin, round(max_late_seconds * 1e9), clock)

    def call(caller: int, stop: threading.Event) -> None:
        log = logs[caller].extend
        while (arrival := queue.take(stop)) is not None:
            clock.wait_until(arrival, stop)
            if stop.is_set():
                return
            sent = now_ns()
            run(inputs)
            log((arrival, sent, now_ns()))

    is_interrupted = _on_threads(callers, call, lambda: on_tick(now_ns() - begin))
    every = _joined(logs, 3)
    if not len(every):
        if is_interrupted:
            raise KeyboardInterrupt
        raise OptionError(
            f"no request arrives in {seconds:g} seconds at {rate:g} requests per second; give a "
            "higher rate or more time"
        )
    end = begin + round(seconds * 1e9)
    end = now_ns() if is_interrupted else max(end, int(every[:, 2].max()))
    arrived, sent, ended = every[np.argsort(every[:, 0], kind="stable")].T
    return RequestTimes(arrived, sent, ended, begin, end, ended, queue.num_dropped, is_interrupted)


class _ArrivalQueue:
    """The arrival times that no caller has claimed yet. Overdue ones are dropped in bulk."""

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
        """The next arrival time; None if there are no more, or `stop` is set."""
        with self._lock:
            while not stop.is_set():
                if self._index == len(self._times):
                    times = next(self._chunks, None)
                    if times is None:
                        return None
                    self._times, self._index = times, 0
                self._drop_late()
                if self._index < len(self._times):
                    arrival = self._begin + int(self._times[self._index])
                    self._index += 1
                    return arrival
        return None

    def _drop_late(self) -> None:
        if not self._has_begun:  # the first is always sent, so that there is a latency to report
            self._has_begun = True
            return
        earliest = self._clock.now_ns() - self._max_late - self._begin
        if self._times[self._index] < earliest:
            first = self._index
            self._index = int(np.searchsorted(self._times, earliest))
            self.num_dropped += self._index - first


def _joined(logs: list[array[int]], width: int) -> Times:
    parts = [np.frombuffer(log, np.int64).reshape(-1, width) for log in logs if log]
    return np.concatenate(parts) if parts else np.empty((0, width), np.int64)


def _on_threads(
    count: int, call: Callable[[int, threading.Event], None], tick: Callable[[], None]
) -> bool:
    """Runs `call(index, stop)` on `count` threads until they end, and `tick` on this one meanwhile.

    Ctrl-C sets `stop` and waits for the requests in flight; a second one does not wait.

    Returns:
        Whether it was interrupted by Ctrl-C.

    Raises:
        The first exception that a `call` raised; it sets `stop` as well.
        ThreadError: the system refuses the threads.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def body(index: int) -> None:
        try:
            call(index, stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    what = f"a thread for each of the {count} callers"
    started: list[PythonThread] = []
    is_interrupted = False
    try:
        for index in range(count):
            thread = PythonThread(functools.partial(body, index), f"caller-{index}", what)
            thread.start()
            started.append(thread)
        for thread in started:
            while not thread.join(_TICK_SECONDS):
                tick()
    except KeyboardInterrupt:
        is_interrupted = True
    finally:
        stop.set()  # no thread may go on calling after an error
        for thread in started:
            while not thread.join(_TICK_SECONDS):
                pass
    if failures:
        raise failures[0]
    return is_interrupted
