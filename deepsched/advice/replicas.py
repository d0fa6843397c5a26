"""How many replicas serve a rate within a p99, and of how many cores: from how long runs take on
this machine, and a simulated balancer in front; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from deepsched.advice.balancing import Balancer, at_random, of_two, simulate
from deepsched.advice.settings import Replicas

BALANCERS: dict[str, Balancer] = {"Ray Serve": of_two, "Kubernetes": at_random}
"""By what starts the replicas, how it chooses one for a request."""

_NUM_REQUESTS = 10_000
_PER_STREAM = 20  # requests, at least: so that queues are as long as they become
_LEAST_LOAD = 0.05  # replicas that are emptier than that do not gain by being more


def plan_replicas(
    scaling_ms: Mapping[int, float],
    busy_ms: Sequence[float],
    most_cores: int,
    rate: float,
    p99_limit_ms: float,
) -> tuple[Replicas, ...]:
    """For each of BALANCERS the replicas that take the fewest cores; none if no number of them has
    such a p99.

    Args:
        scaling_ms: by cores, how long a lone request takes.
        busy_ms: lengths of runs on one core each while all others are busy, as they were measured.
        most_cores: that a replica can have.
        rate: requests per second.
    """
    # Beside busy cores more cores gain what they gain alone.
    factors = {width: ms / scaling_ms[1] for width, ms in scaling_ms.items() if width <= most_cores}
    found = []
    for name in BALANCERS:
        tried = (
            _plan(name, factor, busy_ms, width, most_cores // width, rate, p99_limit_ms)
            for width, factor in factors.items()
        )
        plans = [plan for plan in tried if plan is not None]
        if plans:
            found.append(min(plans, key=lambda it: (it.num_replicas * it.num_cores, it.p99_ms)))
    return tuple(found)


def _plan(
    name: str,
    factor: float,
    busy_ms: Sequence[float],
    width: int,
    most: int,
    rate: float,
    p99_limit_ms: float,
) -> Replicas | None:
    """The fewest streams of `width` cores, in as few replicas of one size as hold them.

    Args:
        factor: how long a run takes on so many cores, in runs on one.
        most: streams that a replica can have.
    """
    runs_ms = sorted(factor * ms for ms in busy_ms)
    if runs_ms[int(0.99 * len(runs_ms))] > p99_limit_ms:
        return None
    mean_ms = sum(runs_ms) / len(runs_ms)

    def p99_ms(num_streams: int) -> float:
        num_replicas = math.ceil(num_streams / most)
        return simulate(
            num_replicas,
            math.ceil(num_streams / num_replicas),
            rate / 1e3,
            lambda rng: rng.choice(runs_ms),
            BALANCERS[name],
            max(_NUM_REQUESTS, _PER_STREAM * num_streams),
        ).p99

    busy = rate * mean_ms / 1e3  # streams, in the mean
    num_streams = _first(
        1 + int(busy), 1 + int(busy / _LEAST_LOAD), lambda count: p99_ms(count) <= p99_limit_ms
    )
    if num_streams is None:
        return None
    num_replicas = math.ceil(num_streams / most)
    each = math.ceil(num_streams / num_replicas)
    return Replicas(
        balancer=name,
        num_replicas=num_replicas,
        num_cores=each * width,
        num_streams=each,
        p99_ms=p99_ms(num_streams),
        load=busy / (num_replicas * each),
    )


def _first(least: int, most: int, holds: Callable[[int], bool]) -> int | None:
    """The first number from `least` to about `most` for which it holds; it then holds for all that
    are larger.

    >>> _first(3, 50, lambda number: number >= 10), _first(3, 50, lambda number: False)
    (10, None)
    """
    low, high = least - 1, least
    while not holds(high):
        if high >= most:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
