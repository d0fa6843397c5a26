"""Closed-loop load: callers that each send the next request when the last one is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Measurement:
    """What a load measured. Latencies are of whole calls, waiting included."""

    callers: int
    """How many threads called at once."""
    batch_size: int
    """Items in a request."""
    seconds: float
    """The time measured, warm-up left out."""
    latencies_ms: np.ndarray[Any, np.dtype[np.float64]]
    """Of each request, in milliseconds, in no particular order."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended it early."""

    @property
    def iterations(self) -> int:
        """How many requests were answered in that time."""
        return len(self.latencies_ms)

    @property
    def items_per_sec(self) -> float:
        """Requests times batch size, a second."""
        return self.iterations * self.batch_size / self.seconds

    def percentile(self, percent: float) -> float:
        """The latency in ms that `percent` of the requests stayed within."""
        return float(np.percentile(self.latencies_ms, percent))

    def to_dict(self) -> dict[str, float | int]:
        """DeepSparse's keys, and `callers`. Latencies in ms."""
        return {
            "callers": self.callers,
            "items_per_sec": self.items_per_sec,
            "seconds_ran": self.seconds,
            "iterations": self.iterations,
            "median": self.percentile(50),
            "mean": float(np.mean(self.latencies_ms)),
            "std": float(np.std(self.latencies_ms)),
            **{f"{percent}%": self.percentile(percent) for percent in PERCENTILES},
        }


def measure(
    run: Callable[[Any], Any],
    inputs: Any,
    *,
    callers: int = 1,
    seconds: float = 10.0,
    warmup_seconds: float = 2.0,
    batch_size: int = 1,
    on_progress: Callable[[float], None] | None = None,
) -> Measurement:
    """Calls `run(inputs)` from `callers` threads for `seconds`, after a warm-up.

    Args:
        run: an engine, or anything else that answers a request.
        on_progress: called about ten times a second with the seconds that have passed, the
            warm-up included.

    Raises:
        Whatever `run` raises, the first of it. KeyboardInterrupt ends the load early, and what
        was measured so far is returned; with nothing measured it goes up.

    Example:
        >>> result = measure(sum, [1, 2], callers=2, seconds=0.05, warmup_seconds=0.0)
        >>> result.iterations > 0
        True
    """
    stop = threading.Event()
    latencies: list[list[tuple[int, int]]] = [[] for _ in range(callers)]
    failures: list[BaseException] = []
    begin = time.perf_counter_ns() + int(warmup_seconds * 1e9)
    end = begin + int(seconds * 1e9)

    def call_on(caller: int) -> None:
        mine = latencies[caller]
        try:
            ended = 0
            while ended < end and not stop.is_set():
                started = time.perf_counter_ns()
                run(inputs)
                ended = time.perf_counter_ns()
                mine.append((started, ended))
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=call_on, args=(caller,), daemon=True, name=f"caller-{caller}")
        for caller in range(callers)
    ]
    interrupted = False
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join(0.1)
            except KeyboardInterrupt:
                interrupted = True
                stop.set()
            if on_progress is not None:
                on_progress(min(time.perf_counter_ns(), end) / 1e9 - begin / 1e9 + warmup_seconds)
    if failures:
        raise failures[0]
    if interrupted:
        end = time.perf_counter_ns()
    every = np.array([span for mine in latencies for span in mine], dtype=np.int64).reshape(-1, 2)
    # What ended between begin and end, whenever it started: then neither the first requests nor
    # the last, when fewer and fewer callers are under way, bias the rate.
    spans = every[(every[:, 1] > begin) & (every[:, 1] <= end)]
    if not len(spans):
        if interrupted:
            raise KeyboardInterrupt
        spans, begin, end = every, every[:, 0].min(), every[:, 1].max()  # requests this long
    return Measurement(
        callers=callers,
        batch_size=batch_size,
        seconds=float(end - begin) / 1e9,
        latencies_ms=(spans[:, 1] - spans[:, 0]) / 1e6,
        is_interrupted=interrupted,
    )
