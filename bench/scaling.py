"""Many nodes behind a balancer: what each way of balancing costs, simulated.

    python -m bench.scaling [--nodes 1,10,100,1000] [--streams 4] [--plot docs/scaling.svg]

Every node serves with so many streams, first come, first served, as multi_stream does; runs vary by
`--variation`. What a node runs and what waits there is what the balancer counts. Latencies are in
runs: 2 is twice as long as a run alone.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


@dataclass
class Node:
    """Streams that take requests in turn."""

    free_at: list[float]
    """When each stream has no more work; a heap."""
    ends: list[float] = field(default_factory=list)
    """Of what is there; a heap."""
    is_up: bool = True

    def outstanding(self, now: float) -> int:
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
    return nodes[int(rng.random() * len(nodes))]


def round_robin() -> Balancer:
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


def balancers() -> dict[str, Balancer]:
    return {
        "random": at_random,
        "round robin": round_robin(),
        "two choices": of_two,
        "least outstanding": least_outstanding,
    }


class Result(NamedTuple):
    """Latencies in runs, of the requests that arrived in the window that was asked for."""

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
    load: float,
    balancer: Balancer,
    num_requests: int = 50_000,
    variation: float = 0.1,
    failure: Failure | None = None,
    window: tuple[float, float] = (0.0, math.inf),
    seed: int = 1,
) -> Result:
    """Poisson arrivals at a share `load` of what all streams serve. Time is in runs."""
    rng = random.Random(seed)
    sigma = math.sqrt(math.log(1 + variation**2))
    nodes = [Node([0.0] * num_streams) for _ in range(num_nodes)]
    believed = list(nodes)
    # (when it is sent, when it arrived first)
    sent_anew: list[tuple[float, float]] = []
    latencies: list[float] = []
    now, retried = 0.0, 0
    due = rng.expovariate(load * num_nodes * num_streams)
    arrived = 0
    while arrived < num_requests or sent_anew:
        if sent_anew and (sent_anew[0][0] <= due or arrived >= num_requests):
            now, first = heapq.heappop(sent_anew)
        else:
            now = first = due
            arrived += 1
            due += rng.expovariate(load * num_nodes * num_streams)
        if failure and believed[0] is nodes[0] and now >= failure.at + failure.noticed_after:
            believed = nodes[1:]
        node = balancer(believed, now, rng)
        run = math.exp(rng.gauss(-(sigma**2) / 2, sigma))
        end = node.take(now, run)
        if failure and node is nodes[0] and end >= failure.at:
            # Lost with its node; the caller learns that when the node is taken off.
            retried += 1
            heapq.heappush(sent_anew, (max(now, failure.at + failure.noticed_after), first))
            continue
        if window[0] <= first < window[1]:
            latencies.append(end - first)
    latencies.sort()
    return Result(sum(latencies) / len(latencies), latencies[int(0.99 * len(latencies))], retried)


LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def plot(results: dict[int, dict[str, dict[float, Result]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(
        1, len(results), figsize=(3.6 * len(results), 3.4), sharey=True, squeeze=False
    )
    for axes, (num_nodes, by_balancer) in zip(all_axes[0], results.items(), strict=True):
        for name, by_load in by_balancer.items():
            axes.plot(list(by_load), [it.p99 for it in by_load.values()], "o-", ms=3, label=name)
        axes.set(title=f"{num_nodes} node{'s' * (num_nodes != 1)}", xlabel="load", ylim=(0.8, 12))
    all_axes[0][0].set_ylabel("p99 latency, runs")
    all_axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", default="1,10,100,1000")
    parser.add_argument("--streams", type=int, default=4, help="of each node")
    parser.add_argument("--variation", type=float, default=0.1, help="of run lengths")
    parser.add_argument("--requests", type=int, default=50_000, help="at least")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE", help="needs matplotlib")
    args = parser.parse_args()
    results = {
        num_nodes: {
            name: {
                load: simulate(
                    num_nodes,
                    args.streams,
                    load,
                    balancer,
                    max(args.requests, 100 * num_nodes * args.streams),
                    args.variation,
                )
                for load in LOADS
            }
            for name, balancer in balancers().items()
        }
        for num_nodes in map(int, args.nodes.split(","))
    }
    if args.json:
        print(json.dumps(results))
    else:
        console = Console(width=None)
        for num_nodes, by_balancer in results.items():
            table = Table(
                "load",
                *(f"{name}: mean, p99" for name in by_balancer),
                title=f"{num_nodes} nodes of {args.streams} streams; latencies in runs",
            )
            for load in LOADS:
                found = [by_load[load] for by_load in by_balancer.values()]
                table.add_row(f"{load:.0%}", *(f"{it.mean:.2f}, {it.p99:.2f}" for it in found))
            console.print(table)
        table = Table("noticed after", "two choices: p99", "sent anew", title="1 of 10 nodes dies")
        for noticed_after in (0.0, 10.0, 100.0, 1000.0):
            failure = Failure(200.0, noticed_after)
            window = (200.0, 200.0 + max(100.0, 2 * noticed_after))
            num_requests = int(10 * args.streams * 0.7 * (window[1] + 200))
            found_one = simulate(
                10, args.streams, 0.7, of_two, num_requests, args.variation, failure, window
            )
            table.add_row(f"{noticed_after:g} runs", f"{found_one.p99:.2f}", str(found_one.retried))
        console.print(table)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
