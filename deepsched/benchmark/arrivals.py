"""Arrival times of the requests of an open loop: pure functions of rate and seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

# Times generated at once, which bounds the memory however long the load is.
_MIN_CHUNK, _MAX_CHUNK = 1024, 65536

Times = np.ndarray[Any, np.dtype[np.float64]]


def arrival_times_ns(
    rate: float, seconds: float, *, poisson: bool = False, seed: int = 0
) -> Iterator[int]:
    """Arrival times in nanoseconds after the start, ascending, all before `seconds`.

    Args:
        rate: the arrival rate, in requests per second.
        poisson: a Poisson process (exponential gaps), as of many independent users; else evenly
            spaced, the first at 0.
        seed: of the Poisson process. The same seed gives the same times.

    Example:
        >>> list(arrival_times_ns(4, 1))
        [0, 250000000, 500000000, 750000000]
    """
    for times in chunks_of_times(rate, seconds, poisson=poisson, seed=seed):
        yield from times.astype(np.int64).tolist()


def chunks_of_times(
    rate: float, seconds: float, *, poisson: bool = False, seed: int = 0
) -> Iterator[Times]:
    """The same times in arrays, none of them empty.

    Arrays grow with the rate, so that generating and dropping one takes far less time than it
    spans: an overloaded load generator must not fall behind by generating.
    """
    size = min(_MAX_CHUNK, max(_MIN_CHUNK, int(rate / 100)))
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
        # From the index: rounding errors of summed gaps would accumulate.
        yield np.arange(first, first + size, dtype=np.float64) * (1e9 / rate)


def _poisson(rate: float, seed: int, size: int) -> Iterator[Times]:
    rng = np.random.default_rng(seed)
    last = 0.0
    while True:
        times: Times = last + np.cumsum(rng.exponential(1e9 / rate, size))
        last = float(times[-1])
        yield times
