"""A crowd of Python threads that call in a loop, and how it fares."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Crowd:
    """What one load of `seconds` showed."""

    per_second: float
    """Requests that all threads ended."""
    fairness: float
    """Requests of the thread that ended fewest, over those of the thread that ended most."""
    p999_ms: float
    """The 99.9th percentile of a request's latency."""
    late_p99_ms: float
    """Of another Python thread, which does nothing but sleep for 1 ms at a time: the 99th
    percentile of how much later than that it goes on."""


def run_crowd(
    run: Callable[[Any], Any], inputs: Any, callers: int, seconds: float, warmup_seconds: float
) -> Crowd:
    """Calls `run(inputs)` from `callers` threads in a loop."""
    latencies: list[list[int]] = [[] for _ in range(callers)]
    lateness: list[float] = []
    start = threading.Barrier(callers + 2)
    begin = end = 0

    def call(mine: list[int]) -> None:
        start.wait()
        now = time.perf_counter_ns()
        while now < end:
            run(inputs)
            before, now = now, time.perf_counter_ns()
            if now >= begin:
                mine.append(now - before)

    def sleep() -> None:
        start.wait()
        now = time.perf_counter_ns()
        while now < end:
            time.sleep(0.001)
            before, now = now, time.perf_counter_ns()
            if now >= begin:
                lateness.append((now - before) / 1e6 - 1)

    threads = [threading.Thread(target=call, args=(mine,)) for mine in latencies]
    threads.append(threading.Thread(target=sleep))
    for thread in threads:
        thread.start()
    begin = time.perf_counter_ns() + int(warmup_seconds * 1e9)
    end = begin + int(seconds * 1e9)
    start.wait()
    for thread in threads:
        thread.join()
    counts = [len(mine) for mine in latencies]
    return Crowd(
        sum(counts) / seconds,
        min(counts) / max(1, max(counts)),
        float(np.percentile(np.concatenate([np.asarray(mine) for mine in latencies]), 99.9)) / 1e6,
        float(np.percentile(lateness, 99)),
    )
