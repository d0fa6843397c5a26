"""search_rate: the highest rate that an engine keeps up with, with p99 within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from deepsched.benchmark.load import Clock, Run
from deepsched.benchmark.measurement import Measurable, Measurement, measure
from deepsched.errors import OptionError

_MOST_DOUBLINGS = 24  # from a rate that the engine has just shown: it is never so far off


class SearchOptions(TypedDict, total=False):
    """The options of `measure` that `search_rate` takes."""

    callers: int | None
    poisson: bool
    seed: int
    seconds: float
    warmup_seconds: float
    clock: Clock


@dataclass(frozen=True)
class Step:
    """One rate that was tried."""

    rate: float
    """Requests a second."""
    p99_ms: float
    """Of all requests that fell due; those dropped count as infinitely late."""
    num_dropped: int
    keeps_up: bool
    """See Measurement."""
    is_held: bool
    """Whether the engine keeps up, with p99 within the limit."""


@dataclass(frozen=True)
class RateSearch:
    """What a search found."""

    p99_limit_ms: float
    rate: float
    """Requests a second: the highest that was tried and held; 0.0 if none did."""
    measurement: Measurement | None
    """At that rate."""
    closed_loop_rate: float
    """Requests a second of a closed loop with a caller for each stream, where the search began."""
    steps: tuple[Step, ...]
    is_interrupted: bool = False
    """Whether Ctrl-C ended it; a higher rate may hold."""


def highest_rate(
    holds: Callable[[float], bool], first: float, lowest: float, precision: float = 0.05
) -> float:
    """The highest rate that holds, by doubling or halving from `first`, then by bisection.

    Args:
        holds: whether a rate holds; if one does, all lower ones are taken to.
        lowest: no rate below this is tried.
        precision: it ends where a rate higher by this share, or less, does not hold.

    Returns:
        A rate that `holds` was true for; 0.0 if it was for none.

    Example:
        >>> 95 < highest_rate(lambda rate: rate <= 100, first=3, lowest=1) <= 100
        True
    """
    low, high = 0.0, math.inf
    rate = max(first, lowest)
    for _ in range(_MOST_DOUBLINGS):
        if holds(rate):
            low, rate = rate, rate * 2
            if high < math.inf:
                break
        else:
            high = rate
            if low > 0 or rate <= lowest:
                break
            rate = max(lowest, rate / 2)
    if low == 0 or high == math.inf:
        return low
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def search_rate(
    target: Run | Measurable,
    inputs: Any = None,
    *,
    p99_limit_ms: float,
    precision: float = 0.05,
    on_step: Callable[[float | None], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    **options: Unpack[SearchOptions],
) -> RateSearch:
    """Searches the highest rate that the engine keeps up with, 99 of 100 requests answered within
    a limit.

    Latency counts from the time that a request was due. A request that could not be sent within
    the limit is dropped and counts as late. A rate is tried for `seconds`, once, and holds if the
    engine keeps up as well (`Measurement.keeps_up`): give a time that some 100 requests fall due
    in, for less does not show whether their backlog grows.

    Args:
        target, inputs: see `measure`.
        p99_limit_ms: the limit, in ms.
        precision: the search ends where a rate higher by this share, or less, does not hold.
        on_step: called with each rate before it is tried; None for the closed loop at the start.
        on_progress: see `measure`; of the step under way.
        options: of `measure`.

    Raises:
        OptionError: an option has a value that is not allowed. KeyboardInterrupt returns what was
        found so far; with nothing measured it goes up.

    Example:
        >>> found = search_rate(
        ...     sum, [1, 2], p99_limit_ms=1e-9, seconds=0.05, warmup_seconds=0
        ... )
        >>> found.rate
        0.0
    """
    if not 0 < p99_limit_ms < math.inf:
        raise OptionError(f"p99_limit_ms must be positive, got {p99_limit_ms!r}")
    if not 0 < precision < math.inf:
        raise OptionError(f"precision must be positive, got {precision!r}")
    steps: list[Step] = []
    best: Measurement | None = None

    def load(rate: float | None) -> Measurement:
        if on_step is not None:
            on_step(rate)
        chosen: dict[str, Any] = {**options, "rate": rate}
        if rate is None:
            chosen.update(poisson=False, callers=None)
        return measure(
            target, inputs, on_progress=on_progress, max_late_seconds=p99_limit_ms / 1e3, **chosen
        )

    def holds(rate: float) -> bool:
        nonlocal best
        result = load(rate)
        if result.is_interrupted:
            raise KeyboardInterrupt
        p99_ms = _p99_ms(result)
        is_held = p99_ms <= p99_limit_ms and result.keeps_up
        steps.append(Step(rate, p99_ms, result.num_dropped, result.keeps_up, is_held))
        if is_held:
            best = result
        return is_held

    closed = load(None)
    closed_loop_rate = closed.iterations / closed.seconds
    is_interrupted = closed.is_interrupted
    if not is_interrupted:
        try:
            # One request at least; of random times there may be none, one in 20,000 times.
            fewest = 10 if options.get("poisson") else 1
            lowest = fewest / options.get("seconds", 10.0)
            highest_rate(holds, closed_loop_rate, lowest, precision)
        except KeyboardInterrupt:
            is_interrupted = True
    # `best` is of the highest: a rate is only tried above one that held.
    return RateSearch(
        p99_limit_ms=p99_limit_ms,
        rate=0.0 if best is None or best.rate is None else best.rate,
        measurement=best,
        closed_loop_rate=closed_loop_rate,
        steps=tuple(steps),
        is_interrupted=is_interrupted,
    )


def _p99_ms(result: Measurement) -> float:
    # "higher": never below what the report's interpolated percentile says.
    every = np.append(result.latencies_ms, np.full(result.num_dropped, np.inf))
    return float(np.percentile(every, 99, method="higher"))
