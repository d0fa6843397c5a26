"""search_rate: the highest arrival rate that an engine keeps up with, with p99 within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from deepsched.benchmark.load import Clock, Run
from deepsched.benchmark.measurement import Measurable, Measurement, measure
from deepsched.benchmark.percentiles import requests_for
from deepsched.errors import OptionError

_MAX_DOUBLINGS = 24  # the measured closed-loop throughput is never further off than that


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
    """One arrival rate that was tried."""

    rate: float
    """Requests per second."""
    p99_ms: float
    """Over all requests that arrived; dropped ones count as infinitely late."""
    num_requests: int
    """How many arrived."""
    num_dropped: int
    keeps_up: bool
    """See Measurement."""
    is_held: bool
    """Whether the engine keeps up with p99 within the limit."""


@dataclass(frozen=True)
class RateSearch:
    """The result of a search."""

    p99_limit_ms: float
    rate: float
    """The highest rate that was tried and held, in requests per second; 0.0 if none held."""
    measurement: Measurement | None
    """The measurement at that rate; None if no rate held."""
    closed_loop_rate: float
    """Requests per second of a closed loop with one caller per stream, where the search began."""
    steps: tuple[Step, ...]
    lowest_rate: float
    """No rate below it was tried, since too few requests for a p99 would arrive."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended it early; a higher rate may hold."""


def highest_rate(
    holds: Callable[[float], bool], first: float, lowest: float, precision: float = 0.05
) -> float:
    """The highest rate that holds, by doubling or halving from `first`, then by bisection.

    Args:
        holds: whether a rate holds; assumed to be monotonic.
        first: the rate to start at.
        lowest: no rate below this is tried.
        precision: relative; it ends when a rate this much higher, or less, does not hold.

    Returns:
        A rate that `holds` was true for; 0.0 if there was none.

    Example:
        >>> 95 < highest_rate(lambda rate: rate <= 100, first=3, lowest=1) <= 100
        True
    """
    low, high = 0.0, math.inf
    rate = max(first, lowest)
    for _ in range(_MAX_DOUBLINGS):
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
        middle = math.sqrt(low * high)  # precision is relative: bisect the logarithm
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
    """Searches the highest arrival rate at which p99 stays within a limit.

    Latency counts from the arrival. A request that could not be sent within the limit is dropped
    and counts as late. Each rate is tried once, for `seconds`, and holds if the engine also keeps
    up (`Measurement.keeps_up`). A p99 takes 300 requests, so that no rate below 300 / `seconds` is
    tried.

    Args:
        target, inputs: see `measure`.
        p99_limit_ms: limit of the 99th percentile of latency, in ms.
        precision: relative; the search ends when a rate this much higher, or less, does not hold.
        on_step: called with each rate before it is tried; None for the closed loop at the start.
        on_progress: see `measure`; of the current step.
        options: of `measure`.

    Returns:
        The rate, its measurement and all steps. After Ctrl-C, the best until then.

    Raises:
        OptionError: an option has a value that is not allowed, or `seconds` is too short for a p99
            of this engine.
        KeyboardInterrupt: Ctrl-C before anything was measured.

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
        steps.append(
            Step(
                rate,
                p99_ms,
                result.num_arrived,
                result.num_dropped,
                result.keeps_up,
                is_held,
            )
        )
        if is_held:
            best = result
        return is_held

    closed = load(None)
    closed_loop_rate = closed.iterations / closed.seconds
    is_interrupted = closed.is_interrupted
    seconds = options.get("seconds", 10.0)
    lowest = requests_for(99) / seconds
    if not is_interrupted:
        if closed_loop_rate < lowest:
            # Twice what one step at that rate takes: the rate that holds is lower.
            enough = math.ceil(2 * requests_for(99) / closed_loop_rate)
            raise OptionError(
                f"a p99 takes {requests_for(99)} requests, and this engine answers about "
                f"{closed_loop_rate:.2g} a second: {seconds:g} seconds are too few; give "
                f"seconds={enough} or more (on the command line --seconds {enough})"
            )
        try:
            highest_rate(holds, closed_loop_rate, lowest, precision)
        except KeyboardInterrupt:
            is_interrupted = True
    # The last that held is the highest: only rates above one that held are tried.
    return RateSearch(
        p99_limit_ms=p99_limit_ms,
        rate=0.0 if best is None or best.rate is None else best.rate,
        measurement=best,
        closed_loop_rate=closed_loop_rate,
        steps=tuple(steps),
        lowest_rate=lowest,
        is_interrupted=is_interrupted,
    )


def _p99_ms(result: Measurement) -> float:
    # "higher" never rounds below the interpolated percentile of the report.
    every = np.append(result.latencies_ms, np.full(result.num_dropped, np.inf))
    return float(np.percentile(every, 99, method="higher"))
