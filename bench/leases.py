"""What leases and moves cost, and what they are worth. Needs two idle cores.

    python -m bench.leases

Prints, and judges by the exit code: the rate of two processes with a lease of one core each, and of
two without leases, against one process with two streams (SqueezeNet, a caller a stream); how long
taking and giving back a lease takes; and, with one core, two and one again in turn under load, the
99th percentile of the latency beside moves against that between them.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from deepsched import Engine, Topology
from deepsched.benchmark import bundled_model
from deepsched.machine.leases import take_lease

_SECONDS = 8.0
_ROUNDS = 3
_LEAST_RATE = 0.97
_MOST_P99 = 2.0
_MOST_LEASE_MS = 1.0
_NUM_MOVES = 100

# Serves from a line of stdin for so many seconds; prints the requests a second.
_PROCESS = """
import sys, threading, time
from deepsched import Engine
from deepsched.benchmark import bundled_model

num_callers, options = int(sys.argv[1]), eval(sys.argv[2])
with Engine(bundled_model("squeezenet"), scheduler="multi_stream", **options) as engine:
    inputs = engine.generate_random_inputs()
    for _ in range(10):
        engine.run(inputs)
    print("ready", flush=True)
    seconds = float(sys.stdin.readline())
    end = time.monotonic() + seconds
    counts = [0] * num_callers

    def call(index):
        while time.monotonic() < end:
            engine.run(inputs)
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(index,)) for index in range(num_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts) / seconds)
"""


def rate(processes: Sequence[tuple[int, dict[str, object]]]) -> float:
    """Requests a second of processes that serve at once, each with so many callers and options."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(num_callers), repr(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for num_callers, options in processes
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(f"{_SECONDS}\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in running)


def lease_ms() -> float:
    """Median time to take a lease and give it back."""
    machine = Topology.detect()
    times = []
    for _ in range(1000):
        began = time.perf_counter()
        take_lease(machine, 1).close()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def p99_of_moves() -> tuple[float, float, int]:
    """99th percentile, in ms, of requests between moves, and of those that a move was under way
    beside; and the number of requests that failed."""
    latencies: list[tuple[float, float]] = []
    num_failed = 0
    end = threading.Event()
    with Engine(bundled_model("squeezenet"), num_cores=1, scheduler="multi_stream") as engine:
        inputs = engine.generate_random_inputs()
        engine.run(inputs)

        def call() -> None:
            nonlocal num_failed
            while not end.is_set():
                began = time.monotonic()
                try:
                    engine.run(inputs)
                except Exception:
                    num_failed += 1
                latencies.append((began, time.monotonic()))

        caller = threading.Thread(target=call)
        caller.start()
        moves = []
        for number in range(_NUM_MOVES):
            time.sleep(0.3)
            began = time.monotonic()
            engine.context.resize(1 + (number + 1) % 2)
            moves.append((began, time.monotonic()))
        end.set()
        caller.join()
    beside = [
        done - began
        for began, done in latencies
        if any(began < last and done > first for first, last in moves)
    ]
    between = [
        done - began
        for began, done in latencies
        if not any(began < last and done > first for first, last in moves)
    ]
    print(
        f"  a move takes {np.median([last - first for first, last in moves]) * 1e3:.0f} ms; "
        f"{len(beside)} requests beside moves, {len(between)} between"
    )
    return (
        float(np.percentile(between, 99)) * 1e3,
        float(np.percentile(beside, 99)) * 1e3,
        num_failed,
    )


def main() -> int:
    """Prints the figures. Returns 1 if one misses its goal."""
    logging.getLogger("deepsched").setLevel(logging.ERROR)
    leased = {"cores": "lease", "num_cores": 1}
    setups: dict[str, Sequence[tuple[int, dict[str, object]]]] = {
        "one process, 2 streams": [(2, {"num_streams": 2})],
        "two processes, a lease of 1 core each": [(1, dict(leased))] * 2,
        "two processes, num_cores=1 without leases": [(1, {"num_cores": 1, "cores": "share"})] * 2,
    }
    rates: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(_ROUNDS):  # alternately
        for name, processes in setups.items():
            rates[name].append(rate(processes))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    one, two, _ = medians.values()
    for name, value in medians.items():
        print(f"{name}: {value:.1f} requests/s, {value / one:.2f} times")
    taken_ms = lease_ms()
    print(f"a lease, taken and given back: {taken_ms:.3f} ms")
    between_ms, beside_ms, num_failed = p99_of_moves()
    print(
        f"p99 between moves {between_ms:.2f} ms, beside moves {beside_ms:.2f} ms, "
        f"{beside_ms / between_ms:.2f} times; {num_failed} failed"
    )
    missed = {
        "rate": two < _LEAST_RATE * one,
        "lease": taken_ms > _MOST_LEASE_MS,
        "p99": beside_ms > _MOST_P99 * between_ms,
        "failed": num_failed > 0,
    }
    print(json.dumps({name: "missed" for name, is_missed in missed.items() if is_missed}))
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main())
