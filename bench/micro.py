"""What the parts of the runtime cost by themselves.

    python -m bench.micro [--rounds 5] [-x out.json]

The queue at 1 to 8 threads beside a deque behind a mutex and queue.SimpleQueue; claim and release
of core groups; a hand-over to a worker and back, asleep and awake. Medians of rounds in turns.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from bench.build import native
from deepsched import Context, Engine
from deepsched.runtime.groups import CoreGroups
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.queue import RequestQueue


def identity_model() -> bytes:
    """The cheapest model there is."""
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 128]) for n in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", shapes[:1], shapes[1:])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def ns_each(work: Callable[[int], None], count: int, num_threads: int) -> float:
    """Nanoseconds for each of `count` operations in each thread; all threads start together."""
    barrier = threading.Barrier(num_threads + 1)

    def body() -> None:
        barrier.wait()
        work(count)

    threads = [threading.Thread(target=body) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter_ns()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - begin) / (count * num_threads)


def simple_queue(count: int, shared: queue.SimpleQueue[int]) -> None:
    for _ in range(count):
        shared.put(1)
        shared.get()


def hand_over_ns(engine: Engine, pause_s: float, count: int) -> float:
    """The median time from handing a request to a worker until its end is heard of."""
    inbox, times = Inbox(), []
    inputs = engine.generate_random_inputs()
    for _ in range(count):
        time.sleep(pause_s)
        begin = time.perf_counter_ns()
        engine._model.start(inputs, inbox)
        while not inbox.take():
            inbox.wait()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    args = parser.parse_args()
    loops = native()
    model = identity_model()
    works: dict[str, Callable[[], float]] = {}
    for n in (1, 2, 4, 8):
        lock_free, locked, simple = RequestQueue(1024), loops.LockedQueue(), queue.SimpleQueue()
        works[f"queue: push and pop, {n} threads"] = lambda n=n, q=lock_free: ns_each(
            lambda count: loops.push_and_pop(q, count), 200_000, n
        )
        works[f"  mutex and deque, {n} threads"] = lambda n=n, q=locked: ns_each(
            q.push_and_pop, 200_000, n
        )
        works[f"  queue.SimpleQueue, {n} threads"] = lambda n=n, q=simple: ns_each(
            lambda count: simple_queue(count, q), 20_000, n
        )
    for size in (2, 64, 512, 4096):
        free, busy = CoreGroups(size), CoreGroups(size)
        for _ in range(size):
            busy.try_claim()
        works[f"claim and release, {size} groups, all free"] = lambda g=free: ns_each(
            lambda count: loops.claim_and_release(g, count), 200_000, 1
        )
        works[f"failed claim, {size} groups, all taken"] = lambda g=busy: ns_each(
            lambda count: loops.claim_and_release(g, count), 200_000, 1
        )
    with Context(num_streams=1) as context, Context(num_streams=1, spin="latency") as awake:
        sleeper, spinner = Engine(model, context=context), Engine(model, context=awake)
        inputs = sleeper.generate_random_inputs()
        works["run, inline"] = lambda: statistics.median(_times(lambda: sleeper.run(inputs), 2000))
        works["hand-over and back, worker asleep"] = lambda: hand_over_ns(sleeper, 0.001, 200)
        works["hand-over and back, worker spinning"] = lambda: hand_over_ns(spinner, 0.0, 2000)
        seen: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                seen[name].append(work())
    medians = {name: statistics.median(values) for name, values in seen.items()}
    table = Table(title="nanoseconds each")
    table.add_column("what")
    table.add_column("ns", justify="right")
    for name, value in medians.items():
        table.add_row(name, f"{value:,.0f}")
    Console().print(table)
    if args.export_path:
        with open(args.export_path, "w") as file:
            json.dump({"medians_ns": medians, "rounds_ns": seen}, file, indent=1)


def _times(work: Callable[[], object], count: int) -> np.ndarray:
    times = np.empty(count)
    for i in range(count):
        begin = time.perf_counter_ns()
        work()
        times[i] = time.perf_counter_ns() - begin
    return times


if __name__ == "__main__":
    main()
