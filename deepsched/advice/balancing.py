"""Many nodes behind a balancer, simulated: what each way of balancing makes of latencies.

Every node serves with so many streams, first come, first served, as multi_stream does. What a node
runs and what waits there is what the balancer counts.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Node:
    """Streams that take requests in turn."""

    free_at: list[float]
    """When each stream has no more work; a heap."""
    ends: list[float] = field(default_factory=list)
    """Of what is there; a heap."""

    def outstanding(self, now: float) -> int:
        """Requests that are there."""
        while self.ends and self.ends[0] <= now:
            heapq.heappop(self.ends)
        return len(self.ends)

    def take(self, now: float, run: float) -> float:
        """When a request that arrives now, and runs for so long, ends."""
        end = max(now, heapq.heappop(self.free_at)) + run
        heapq.heappush(self.free_at, end)
        heapq.heappush(self.ends, end)
        return end


Balancer = Callable[[Sequence[Node], float, random.Random], Node]
"""Chooses among the nodes that it takes to be up."""


def at_random(nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
    """What a Service of Kubernetes does, connection by connection."""
    return nodes[int(rng.random() * len(nodes))]


def round_robin() -> Balancer:
    """One after the other."""
    turn = 0

    def choose(nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        nonlocal turn
        turn += 1
        return nodes[turn % len(nodes)]

    return choose


def of_two(nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
    """The better of two at random: what Ray Serve's router does, and Envoy's least request."""
    one, other = at_random(nodes, now, rng), at_random(nodes, now, rng)
    return min(one, other, key=lambda node: node.outstanding(now))


def least_outstanding(nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
    """Of all, from a random one on, so that ties do not all go to the first."""
    begin = int(rng.random() * len(nodes))
    best, least = nodes[begin], nodes[begin].outstanding(now)
    for at in range(begin + 1, begin + len(nodes)):
        if least == 0:
            break
        node = nodes[at % len(nodes)]
        if (count := node.outstanding(now)) < least:
            best, least = node, count
    return best


class Result(NamedTuple):
    """Latencies of the requests that arrived in the window that was asked for."""

    mean: float
    p99: float
    retried: int
    """Requests that were sent anew, as their node was down."""


@dataclass(frozen=True)
class Failure:
    """A node that dies. The balancer goes on sending to it until it is noticed."""

    at: float
    noticed_after: float


def simulate(
    num_nodes: int,
    num_streams: int,
    rate: float,
    run_length: Callable[[random.Random], float],
    balancer: Balancer,
    num_requests: int,
    failure: Failure | None = None,
    window: tuple[float, float] = (0.0, math.inf),
    seed: int = 1,
) -> Result:
    """Poisson arrivals. The unit of time is that of `rate` and of `run_length`.

    Args:
        rate: requests that arrive in a unit of time, at all nodes together.
        run_length: draws how long a request runs.
        window: of the arrivals whose latencies count.

    >>> unit = lambda rng: 1.0
    >>> simulate(2, 4, 4.0, unit, of_two, 2000).p99 < simulate(2, 4, 7.6, unit, of_two, 2000).p99
    True
    """
    rng = random.Random(seed)
    nodes = [Node([0.0] * num_streams) for _ in range(num_nodes)]
    believed = list(nodes)
    # (when it is sent, when it arrived first)
    sent_anew: list[tuple[float, float]] = []
    latencies: list[float] = []
    retried = 0
    due = rng.expovariate(rate)
    arrived = 0
    while arrived < num_requests or sent_anew:
        if sent_anew and (sent_anew[0][0] <= due or arrived >= num_requests):
            now, first = heapq.heappop(sent_anew)
        else:
            now = first = due
            arrived += 1
            due += rng.expovariate(rate)
        if failure and believed[0] is nodes[0] and now >= failure.at + failure.noticed_after:
            believed = nodes[1:]
        node = balancer(believed, now, rng)
        end = node.take(now, run_length(rng))
        if failure and node is nodes[0] and end >= failure.at:
            # Lost with its node; the caller learns that when the node is taken off.
            retried += 1
            heapq.heappush(sent_anew, (max(now, failure.at + failure.noticed_after), first))
            continue
        if window[0] <= first < window[1]:
            latencies.append(end - first)
    latencies.sort()
    return Result(sum(latencies) / len(latencies), latencies[int(0.99 * len(latencies))], retried)
