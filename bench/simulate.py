"""The schedulers on machines that are not at hand: a discrete-event model with the real policy.

    python -m bench.simulate [--synthetic 2:1:4:8] [--scales-to 8] [--shared 0.5] [--seeds 3]

Requests arrive, take a core group by the policy of each scheduler, and leave. A run takes as long
as the speed-up curve says, varied at random; slower beside others, with which it shares memory
bandwidth; slower still on several cores while the host has put these far apart. Nothing else costs
time: no wake-ups, no hand-overs. `elastic` decides and learns by the code that the runtime uses
(deepsched/runtime/estimates.pyx, policy.pyx), and starts from what it would have measured alone.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.runtime.estimates import Learner
from deepsched.runtime.policy import PolicyTree
from deepsched.scheduling.group_tree import GroupTree, tree_of

LOADS = "0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.85,0.9,0.95"

Lengths = Callable[[int, float], float]
"""The length of a run on so many cores that begins at a time, alone; both in seconds."""


class Result(NamedTuple):
    """Of one scheduler under one load; seconds."""

    throughput: float
    mean: float
    p50: float
    p99: float
    trials: float
    """Share of requests by which elastic tried another width."""
    ended: list[tuple[float, float, int]]
    """Of each request, in the order of their ends: when, its latency, and its cores."""


@dataclass
class Machine:
    """Core groups, and how long runs take on them."""

    tree: GroupTree
    run_s: Lengths
    shared: float = 0.0
    """A run takes so much longer, as a share, while all other cores are busy."""
    cold: float = 0.0
    """A run on several streams takes so much longer, as a share, if the last run on any of its
    cores was on another group: threads have to be woken, and caches hold other parts."""
    variation: float = 0.1
    """Coefficient of variation of run lengths."""
    seed: int = 1
    widths: list[int] = field(init=False)
    num_cores: int = field(init=False)

    def __post_init__(self) -> None:
        self.widths = [self.tree.num_cores(group) for group in range(len(self.tree.leaves))]
        self.num_cores = self.widths[self.tree.root]
        self._random = random.Random(self.seed)
        self._last_groups = [-1] * self.tree.num_leaves
        self._sigma = math.sqrt(math.log(1 + self.variation**2))

    def length_s(self, group: int, now: float) -> float:
        """Of one run that begins now, alone."""
        varied = math.exp(self._random.gauss(-(self._sigma**2) / 2, self._sigma))
        low, high = self.tree.leaves[group]
        is_cold = high - low > 1 and any(last != group for last in self._last_groups[low:high])
        self._last_groups[low:high] = [group] * (high - low)
        return self.run_s(self.widths[group], now) * varied * (1 + self.cold * is_cold)

    def company(self, group: int, num_busy: int) -> float:
        """The share of the other cores that are busy, if `num_busy` are with the group's."""
        others = self.num_cores - self.widths[group]
        return (num_busy - self.widths[group]) / others if others else 0.0


@dataclass
class Run:
    """A request on its core group."""

    group: int
    arrived: float
    began: float
    left_s: float
    """How long it would take still, alone."""
    company: float
    speed: float = 1.0
    is_trial: bool = False


class FixedWidth:
    """Every request takes one stream."""

    def arrive(self, num_in_system: int, now: float) -> None:
        """A request arrives, and is one of so many."""

    def choose(self, busy: Sequence[Run | None], num_waiting: int, now: float) -> tuple[int, bool]:
        """A free stream, and that this is no trial. `busy`: by stream, what runs there."""
        return busy.index(None), False

    def learn(self, run: Run, company: float, now: float) -> None:
        """A run has ended, beside which a share `company` of the other cores was busy."""


class Elastic(FixedWidth):
    """The runtime's policy."""

    def __init__(self, machine: Machine, believed: Lengths | None = None) -> None:
        """`believed`: what was measured before, if it is not true any more."""
        tree = machine.tree
        self._leaves = tree.leaves
        lengths = believed or machine.run_s
        widths = sorted({high - low for low, high in tree.leaves})
        cores = [machine.num_cores * width // tree.num_leaves for width in widths]
        self._learner = Learner(
            PolicyTree(tree.leaves, tree.parents), [1e9 * lengths(it, 0.0) for it in cores]
        )

    def arrive(self, num_in_system: int, now: float) -> None:
        self._learner.arrive(num_in_system, _ns(now))

    def choose(self, busy: Sequence[Run | None], num_waiting: int, now: float) -> tuple[int, bool]:
        busy_ns = [_ns(run.left_s / run.speed) if run else 0 for run in busy]
        group = -1
        for _ in range(2):  # where the worker that is woken has the first one wait, one more is
            group, _ = self._learner.decide(busy_ns, -1, num_waiting, _ns(now), may_try=False)
            leaf = self._leaves[group][0]
            if busy_ns[leaf]:
                leaf = busy_ns.index(0)
            group, _ = self._learner.decide(busy_ns, leaf, num_waiting, _ns(now), may_hold=True)
            if not self._is_busy(busy_ns, group):
                return self._learner.decide(busy_ns, leaf, num_waiting, _ns(now))
        return group, False

    def _is_busy(self, busy_ns: Sequence[int], group: int) -> bool:
        low, high = self._leaves[group]
        return any(busy_ns[low:high])

    def learn(self, run: Run, company: float, now: float) -> None:
        self._learner.learn(run.group, company, _ns(now - run.began), run.is_trial, _ns(now))


def _ns(seconds: float) -> int:
    return 1 + int(1e9 * seconds)


def simulate(
    machine: Machine,
    policy: FixedWidth,
    arrivals: Iterable[float] | None = None,
    callers: int = 0,
    num_requests: int = 20_000,
) -> Result:
    """Open loop at the times of `arrivals`, or `callers` that ask again when they are served."""
    order = itertools.count()
    source = iter(arrivals) if arrivals is not None else iter([0.0] * callers)
    due = [(when, next(order)) for when in itertools.islice(source, 1 if arrivals else callers)]
    busy: list[Run | None] = [None] * machine.tree.num_leaves
    running: list[Run] = []
    waiting: deque[float] = deque()
    ended: list[tuple[float, float, int]] = []
    now = 0.0
    num_busy = num_trials = 0
    while len(ended) < num_requests and (due or running):
        first = min(running, key=lambda run: run.left_s / run.speed, default=None)
        end = now + first.left_s / first.speed if first else math.inf
        before, now = now, min(end, due[0][0] if due else math.inf)
        for run in running:
            run.left_s -= (now - before) * run.speed
        if first and end <= now:
            low, high = machine.tree.leaves[first.group]
            busy[low:high] = [None] * (high - low)
            running.remove(first)
            company = machine.company(first.group, num_busy)
            num_busy -= machine.widths[first.group]
            policy.learn(first, (first.company + company) / 2, now)
            ended.append((now, now - first.arrived, machine.widths[first.group]))
            if arrivals is None:
                heapq.heappush(due, (now, next(order)))
        else:
            arrived, _ = heapq.heappop(due)
            policy.arrive(len(running) + len(waiting) + 1, now)
            waiting.append(arrived)
            for when in itertools.islice(source, 1 if arrivals is not None else 0):
                heapq.heappush(due, (when, next(order)))
        if due and due[0][0] <= now:
            continue  # a caller asks again before anybody looks
        while waiting and num_busy < machine.num_cores:
            group, is_trial = policy.choose(busy, len(waiting), now)
            low, high = machine.tree.leaves[group]
            if any(busy[low:high]):
                break  # held
            company = machine.company(group, num_busy + machine.widths[group])
            run = Run(group, waiting.popleft(), now, machine.length_s(group, now), company)
            run.is_trial = is_trial
            num_trials += is_trial
            busy[low:high] = [run] * (high - low)
            running.append(run)
            num_busy += machine.widths[group]
        for run in running:
            run.speed = 1 / (1 + machine.shared * machine.company(run.group, num_busy))
    latencies = sorted(latency for _, latency, _ in ended)
    count = len(latencies)
    return Result(
        count / now,
        sum(latencies) / count,
        latencies[count // 2],
        latencies[int(0.99 * count)],
        num_trials / count,
        ended,
    )


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Times of arrivals, for ever."""
    rng = random.Random(seed)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def amdahl(serial: float, scales_to: int, one_core_s: float) -> Lengths:
    """A serial share, and no gain beyond so many cores."""

    def run_s(cores: int, now: float) -> float:
        return one_core_s * (serial + (1 - serial) / min(cores, scales_to))

    return run_s


def in_phases(near: Lengths, far: Lengths, phase_s: float) -> Lengths:
    """Cores that are near and far in turns, near first."""

    def run_s(cores: int, now: float) -> float:
        return (near, far)[int(now / phase_s) % 2](cores, now)

    return run_s


def compare(
    topology: Topology, run_s: Lengths, shared: float, load: float, num_requests: int, seed: int
) -> dict[str, Result]:
    """All fixed settings that can serve it, and elastic, at a share of the highest capacity of any.

    The same requests for each: they arrive at the same times, and the nth to begin is as much
    longer or shorter than usual.
    """
    num_cores = len(topology.cores)
    counts = [count for count in range(1, num_cores + 1) if num_cores % count == 0]
    trees = {count: tree_of(partition(topology, num_streams=count).streams) for count in counts}

    def capacity(count: int) -> float:
        return count / run_s(num_cores // count, 0.0) / (1 + shared * (count > 1))

    rate = load * max(capacity(count) for count in counts)
    results = {
        f"{count} streams": simulate(
            Machine(trees[count], run_s, shared, seed=seed),
            FixedWidth(),
            poisson(rate, seed),
            num_requests=num_requests,
        )
        for count in counts
        if rate < 0.99 * capacity(count)
    }
    machine = Machine(trees[num_cores], run_s, shared, seed=seed)
    results["elastic"] = simulate(
        machine, Elastic(machine), poisson(rate, seed), num_requests=num_requests
    )
    return results


def ratios(results: Sequence[dict[str, Result]], figure: str) -> tuple[str, list[float]]:
    """The best fixed setting by its mean over the seeds, and by seed what elastic has of it."""
    fixed = {
        name: statistics.fmean(getattr(by[name], figure) for by in results)
        for name in results[0]
        if name != "elastic"
    }
    best = min(fixed, key=lambda name: fixed[name])
    return best, [getattr(by["elastic"], figure) / getattr(by[best], figure) for by in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--synthetic", default="2:1:4:8", help="see deepsched topology")
    parser.add_argument("--serial", type=float, default=0.02, help="share that does not scale")
    parser.add_argument("--scales-to", type=int, default=8, help="cores")
    parser.add_argument("--shared", type=float, default=0.0, help="see Machine.shared")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3, help="how often, with other arrivals")
    parser.add_argument("--loads", default=LOADS, help="shares of the highest capacity")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    packages, nodes, l3s, cores = (int(part) for part in args.synthetic.split(":")[:4])
    topology = Topology.synthetic(packages, nodes, l3s, cores)
    run_s = amdahl(args.serial, args.scales_to, 0.01)
    table = Table("load", "elastic", "best fixed", "mean", "p99", "trials")
    for load in map(float, args.loads.split(",")):
        results = [
            compare(topology, run_s, args.shared, load, args.requests, seed)
            for seed in range(args.seeds)
        ]
        if args.json:
            shown = [{name: it[:-1] for name, it in by.items()} for by in results]
            print(json.dumps({"load": load, "results": shown}), flush=True)
            continue
        best, of_mean = ratios(results, "mean")
        _, of_p99 = ratios(results, "p99")
        row = [
            f"{1e3 * statistics.fmean(by[name].mean for by in results):.2f} ms"
            for name in ("elastic", best)
        ]
        row[1] += f" ({best})"
        row += [
            f"{statistics.fmean(of):.3f} ± {statistics.stdev(of) if len(of) > 1 else 0:.3f}"
            for of in (of_mean, of_p99)
        ]
        trials = statistics.fmean(by["elastic"].trials for by in results)
        table.add_row(f"{load:g}", *row, f"{trials:.2%}")
    if not args.json:
        Console().print(table)
        print(
            "mean, p99: what elastic has of the best fixed setting's, and how that varies by seed"
        )


if __name__ == "__main__":
    main()
