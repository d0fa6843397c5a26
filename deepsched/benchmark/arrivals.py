"""When requests fall due in an open loop: pure functions of rate and seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_CHUNK = 1024  # drawn at once; what is in memory, however long the load


def arrival_times_ns(
    rate: float, seconds: float, *, poisson: bool = False, seed: int = 0
) -> Iterator[int]:
    """Nanoseconds after the start at which requests fall due, in order, all before `seconds`.

    Args:
        rate: requests a second.
        poisson: gaps are drawn from an exponential distribution, as of many callers who know
            nothing of each other; else all are the same, and the first request is due at 0.
        seed: of the draw. The same seed gives the same times.

    Example:
        >>> list(arrival_times_ns(4, 1))
        [0, 250000000, 500000000, 750000000]
    """
    end = seconds * 1e9
    for times in _poisson(rate, seed) if poisson else _even(rate):
        for due in times.tolist():
            if due >= end:
                return
            yield int(due)


def _even(rate: float) -> Iterator[np.ndarray]:
    first = 0
    while True:
        # From the index, not by adding up gaps: no error builds up.
        yield np.arange(first, first + _CHUNK) * (1e9 / rate)
        first += _CHUNK


def _poisson(rate: float, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    last = 0.0
    while True:
        times = last + np.cumsum(rng.exponential(1e9 / rate, _CHUNK))
        last = times[-1]
        yield times
