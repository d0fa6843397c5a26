"""The schedulers on machines that are not at hand: a discrete-event model with the real policy.

    python -m bench.simulate [--synthetic 2:1:4:8] [--serial 0.02] [--scales-to 8]

Requests arrive, take a core group by the policy of each scheduler, run for as long as the speed-up
curve says, and leave. Nothing else costs time: no wake-ups, no caches. `elastic` decides by the
function that the runtime uses (deepsched/runtime/policy.pyx).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.runtime.policy import PolicyTree
from deepsched.scheduling.group_tree import GroupTree, tree_of


class Result(NamedTuple):
    """Of one scheduler under one load; seconds."""

    throughput: float
    mean: float
    p50: float
    p99: float


class Machine:
    """Core groups and what runs on them."""

    def __init__(self, tree: GroupTree, run_s: Callable[[int], float], useful: int) -> None:
        """`run_s`: the length of a run on so many cores; more than `useful` are not taken."""
        self.tree = tree
        self.policy = PolicyTree(tree.leaves, tree.parents)
        self.run_s = [run_s(tree.num_cores(group)) for group in range(len(tree.leaves))]
        self.run_ns = [
            int(1e9 * seconds) if group < tree.num_leaves or tree.num_cores(group) <= useful else 0
            for group, seconds in enumerate(self.run_s)
        ]
        self.until = [0.0] * tree.num_leaves  # 0: free
        self.num_free = tree.num_leaves

    def choose(self, now: float, num_waiting: int, num_seen: float) -> int:
        """The group to take; -1: wait for one that is busy."""
        busy = [max(1, int(1e9 * (until - now))) if until else 0 for until in self.until]
        leaf = self.policy.roomiest_leaf(busy)
        group = self.policy.choose(self.run_ns, busy, leaf, num_waiting, num_seen)
        low, high = self.tree.leaves[group]
        return -1 if any(busy[low:high]) else group

    def first_free(self) -> int:
        return self.until.index(0.0)

    def start(self, group: int, now: float) -> float:
        low, high = self.tree.leaves[group]
        end = now + self.run_s[group]
        self.until[low:high] = [end] * (high - low)
        self.num_free -= high - low
        return end

    def leave(self, group: int) -> None:
        low, high = self.tree.leaves[group]
        self.until[low:high] = [0.0] * (high - low)
        self.num_free += high - low


def simulate(
    machine: Machine,
    arrivals: Iterable[float] | None = None,
    callers: int = 0,
    num_requests: int = 20_000,
    is_elastic: bool = True,
) -> Result:
    """Open loop at the times of `arrivals`, or `callers` that each ask again when they are served.

    Not elastic: every request takes one leaf.
    """
    events: list[tuple[float, int, int, float]] = []  # (when, node or -1, order, arrived)
    order = itertools.count()
    if arrivals is None:
        events = [(0.0, -1, next(order), 0.0) for _ in range(callers)]
    source = iter(arrivals) if arrivals is not None else iter(())
    for first in itertools.islice(source, 1):
        events.append((first, -1, next(order), first))
    waiting: deque[float] = deque()
    running = 0
    seen = 0.0
    latencies: list[float] = []
    now = 0.0
    while events and len(latencies) < num_requests:
        now, node, _, arrived = heapq.heappop(events)
        if node < 0:
            found = min(running + len(waiting), 2 * machine.tree.num_leaves)
            seen += (found - seen) / (16 if found >= seen else 4)
            waiting.append(arrived)
            for due in itertools.islice(source, 1):
                heapq.heappush(events, (due, -1, next(order), due))
        else:
            machine.leave(node)
            running -= 1
            latencies.append(now - arrived)
            if arrivals is None:
                heapq.heappush(events, (now, -1, next(order), now))
                continue  # the caller asks again before anybody looks
        while waiting and machine.num_free:
            if is_elastic:
                node = machine.choose(now, len(waiting), seen)
                if node < 0:
                    break
            else:
                node = machine.first_free()
            arrived = waiting.popleft()
            running += 1
            heapq.heappush(events, (machine.start(node, now), node, next(order), arrived))
    latencies.sort()
    return Result(
        len(latencies) / now,
        sum(latencies) / len(latencies),
        latencies[len(latencies) // 2],
        latencies[int(0.99 * len(latencies))],
    )


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Times of arrivals, for ever."""
    rng = random.Random(seed)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def amdahl(serial: float, scales_to: int, one_core_s: float) -> Callable[[int], float]:
    """The length of a run: a serial share, and no gain beyond so many cores."""

    def run_s(cores: int) -> float:
        used = min(cores, scales_to)
        return one_core_s * (serial + (1 - serial) / used)

    return run_s


def compare(
    topology: Topology,
    run_s: Callable[[int], float],
    useful: int,
    loads: Sequence[float],
    num_requests: int,
) -> dict[float, dict[str, Result]]:
    """All fixed settings and elastic at shares of the highest capacity of any."""
    num_cores = len(topology.cores)
    counts = [count for count in range(1, num_cores + 1) if num_cores % count == 0]
    trees = {count: tree_of(partition(topology, num_streams=count).streams) for count in counts}
    capacity = max(count / run_s(num_cores // count) for count in counts)
    results: dict[float, dict[str, Result]] = {}
    for load in loads:
        rate = load * capacity
        results[load] = {
            f"{count} streams": simulate(
                Machine(trees[count], run_s, useful),
                poisson(rate),
                num_requests=num_requests,
                is_elastic=False,
            )
            for count in counts
            if rate < 0.99 * count / run_s(num_cores // count)
        }
        results[load]["elastic"] = simulate(
            Machine(trees[num_cores], run_s, useful), poisson(rate), num_requests=num_requests
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--synthetic", default="2:1:4:8", help="see deepsched topology")
    parser.add_argument("--serial", type=float, default=0.02, help="share that does not scale")
    parser.add_argument("--scales-to", type=int, default=8, help="cores")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    packages, nodes, l3s, cores = (int(part) for part in args.synthetic.split(":")[:4])
    topology = Topology.synthetic(packages, nodes, l3s, cores)
    loads = [0.05, *(round(0.1 * step, 1) for step in range(1, 10)), 0.95]
    results = compare(
        topology, amdahl(args.serial, args.scales_to, 0.01), args.scales_to, loads, args.requests
    )
    if args.json:
        print(
            json.dumps(
                {load: {k: r._asdict() for k, r in by.items()} for load, by in results.items()}
            )
        )
        return
    table = Table(
        "load", "elastic mean", "best fixed", "ratio", "elastic p99", "best fixed", "ratio"
    )
    for load, by_name in results.items():
        mine = by_name["elastic"]
        row = [f"{load:g}"]
        for field in ("mean", "p99"):
            name, best = min(
                ((name, getattr(it, field)) for name, it in by_name.items() if name != "elastic"),
                key=lambda pair: pair[1],
            )
            value = getattr(mine, field)
            row += [f"{1e3 * value:.3f} ms", f"{1e3 * best:.3f} ({name})", f"{value / best:.2f}"]
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
