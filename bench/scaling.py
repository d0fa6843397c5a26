"""Many nodes behind a balancer: what each way of balancing costs, simulated.

    python -m bench.scaling [--nodes 1,10,100,1000] [--streams 4] [--plot docs/scaling.svg]

The simulation is that of deepsched/advice/balancing.py; runs vary by `--variation`. Latencies are
in runs: 2 is twice as long as a run alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from deepsched.advice.balancing import (
    Balancer,
    Failure,
    Result,
    at_random,
    least_outstanding,
    of_two,
    round_robin,
    simulate,
)


def balancers() -> dict[str, Balancer]:
    return {
        "random": at_random,
        "round robin": round_robin(),
        "two choices": of_two,
        "least outstanding": least_outstanding,
    }


def varied(variation: float) -> Callable[[random.Random], float]:
    """Draws run lengths with a mean of 1."""
    sigma = math.sqrt(math.log(1 + variation**2))
    return lambda rng: math.exp(rng.gauss(-(sigma**2) / 2, sigma))


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
                    load * num_nodes * args.streams,
                    varied(args.variation),
                    balancer,
                    max(args.requests, 100 * num_nodes * args.streams),
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
            rate = 0.7 * 10 * args.streams
            found_one = simulate(
                10,
                args.streams,
                rate,
                varied(args.variation),
                of_two,
                num_requests,
                failure,
                window,
            )
            table.add_row(f"{noticed_after:g} runs", f"{found_one.p99:.2f}", str(found_one.retried))
        console.print(table)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
