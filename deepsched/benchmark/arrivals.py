"""When requests fall due in an open loop: pure functions of rate and seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

_LEAST_CHUNK, _MOST_CHUNK = 1024, 65536  # drawn at once; what is in memory, however long the load

Times = np.ndarray[Any, np.dtype[np.float64]]


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
    for times in chunks_of_times(rate, seconds, poisson=poisson, seed=seed):
        yield from times.astype(np.int64).tolist()


def chunks_of_times(
    rate: float, seconds: float, *, poisson: bool = False, seed: int = 0
) -> Iterator[Times]:
    """The same times, many at once, none of them empty: the higher the rate the more, so that
    skipping all of them takes a small part of the time that they span."""
    size = min(_MOST_CHUNK, max(_LEAST_CHUNK, int(rate / 100)))
    end = seconds * 1e9
    for times in _poisson(rate, seed, size) if poisson else _even(rate, size):
        if times[-1] < end:
            yield times
            continue
        rest = times[: np.searchsorted(times, end)]
        if len(rest):
            yield rest
        return


def _even(rate: float, size: int) -> Iterator[Times]:
    for first in itertools.count(0, size):
        # From the index, not by adding up gaps: no error builds up.
        yield np.arange(first, first + size, dtype=np.float64) * (1e9 / rate)


def _poisson(rate: float, seed: int, size: int) -> Iterator[Times]:
    rng = np.random.default_rng(seed)
    last = 0.0
    while True:
        times: Times = last + np.cumsum(rng.exponential(1e9 / rate, size))
        last = float(times[-1])
        yield times
