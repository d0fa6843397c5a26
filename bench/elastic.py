"""Elastic against the fixed schedulers, at every load.

    python -m bench.elastic [--models squeezenet,mlp] [--rounds 5] [-x out.json] [--plot out.png]

Within a round the schedulers take turns; what counts are medians over the rounds. `--simulate`
adds what bench.simulate says of the same loads, from the measured lengths of runs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from bench.peers import NUM_CORES, make_mlp
from bench.simulate import Machine, poisson, simulate
from deepsched import Engine, Topology, compile_model, partition
from deepsched.benchmark import bundled_model, measure
from deepsched.scheduling.group_tree import tree_of

SCHEDULERS = ("single_stream", "multi_stream", "elastic")
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9)


def make_encoder(layers: int = 4, width: int = 256, heads: int = 4, length: int = 128) -> bytes:
    """A transformer encoder with made-up weights: (1, length, width) in and out."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(array: Any) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(array, name))
        return name

    def linear(x: str, rows: int, columns: int) -> str:
        scale = 1 / math.sqrt(rows)
        matrix = (scale * rng.standard_normal((rows, columns))).astype(np.float32)
        return add("MatMul", x, constant(matrix))

    def norm(x: str) -> str:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return add("LayerNormalization", x, constant(ones), constant(zeros))

    split = constant(np.array([1, length, heads, width // heads], np.int64))
    join = constant(np.array([1, length, width], np.int64))
    scale = constant(np.float32(1 / math.sqrt(width // heads)))
    x = "x"
    for _ in range(layers):
        y = norm(x)
        query, key, value = (
            add("Transpose", add("Reshape", linear(y, width, width), split), perm=order)
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = add("Softmax", add("Mul", add("MatMul", query, key), scale), axis=-1)
        mixed = add("Transpose", add("MatMul", scores, value), perm=[0, 2, 1, 3])
        x = add("Add", x, linear(add("Reshape", mixed, join), width, width))
        hidden = add("Relu", linear(norm(x), width, 4 * width))
        x = add("Add", x, linear(hidden, 4 * width, width))
    shape = [1, length, width]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", [x], ["y"])],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], str | bytes]] = {
    "squeezenet": lambda: bundled_model("squeezenet"),
    "resnet50": lambda: bundled_model("resnet50"),
    "shufflenet": lambda: bundled_model("shufflenet"),
    "mlp": lambda: make_mlp(1024, 8),
    "encoder": make_encoder,
}


def settle() -> None:
    """Lets the threads of the scheduler that ran last fall asleep."""
    time.sleep(0.03)


def p50_s(engine: Engine, inputs: list[Any], seconds: float) -> float:
    times = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        engine.run(inputs)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:] or times)


def open_loop(
    engine: Engine, inputs: list[Any], rate: float, seconds: float, seed: int
) -> list[float]:
    """Latencies from the time that each request was due, s."""
    rng = random.Random(seed)
    latencies: list[float] = []
    done = threading.Semaphore(0)
    begin = time.perf_counter()
    due, count = begin, 0
    while (due := due + rng.expovariate(rate)) < begin + seconds:
        if (left := due - time.perf_counter()) > 0:
            time.sleep(left)

        def ended(_: Any, due: float = due) -> None:
            latencies.append(time.perf_counter() - due)
            done.release()

        engine.submit(inputs).add_done_callback(ended)
        count += 1
    for _ in range(count):
        done.acquire()
    return latencies


def jumps(engine: Engine, inputs: list[Any], seconds: float) -> dict[str, float]:
    """1 caller and 16 in turns, a second each: requests/s of each phase, and the slowest (s)."""
    rates: dict[int, list[float]] = {1: [], 16: []}
    slowest = 0.0
    for phase in range(int(seconds)):
        callers = (1, 16)[phase % 2]
        result = measure(engine.run, inputs, callers=callers, seconds=1.0, warmup_seconds=0.0)
        rates[callers].append(result.items_per_sec)
    slowest = engine.stats().running.max + engine.stats().waiting.max
    return {
        "1 caller": statistics.median(rates[1]),
        "16 callers": statistics.median(rates[16]),
        "slowest": slowest,
    }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run_model(name: str, num_rounds: int, seconds: float, simulated: bool) -> dict[str, Any]:
    model = MODELS[name]()
    engines = {
        scheduler: compile_model(
            model,
            1,
            scheduler=scheduler,
            num_cores=NUM_CORES,
            num_streams=None if scheduler == "single_stream" else NUM_CORES,
        )
        for scheduler in SCHEDULERS
    }
    inputs = engines["elastic"].generate_random_inputs()
    figures: dict[str, dict[str, list[float]]] = {}

    def note(row: str, scheduler: str, value: float) -> None:
        figures.setdefault(row, {}).setdefault(scheduler, []).append(value)

    for _ in range(num_rounds):
        for scheduler, engine in engines.items():
            settle()
            p50_s(engine, inputs, 0.05)
            note("p50, 1 caller", scheduler, p50_s(engine, inputs, seconds))
        for callers in (4, 16):
            for scheduler, engine in engines.items():
                settle()
                rate = measure(
                    engine.run, inputs, callers=callers, seconds=seconds, warmup_seconds=0.1
                ).items_per_sec
                note(f"requests/s, {callers} callers", scheduler, rate)
    capacity = statistics.median(figures["requests/s, 16 callers"]["multi_stream"])
    for number in range(num_rounds):
        for load in LOADS:
            for scheduler, engine in engines.items():
                settle()
                rate = load * capacity
                # Enough for a p99 in all rounds together.
                length = max(2 * seconds, min(200 / rate, 8.0))
                latencies = open_loop(engine, inputs, rate, length, seed=number)
                note(f"mean at {load:.0%}", scheduler, statistics.fmean(latencies))
                note(f"p99 at {load:.0%}", scheduler, percentile(latencies, 0.99))
    medians = {
        row: {scheduler: statistics.median(values) for scheduler, values in by.items()}
        for row, by in figures.items()
    }
    result: dict[str, Any] = {"capacity": capacity, "medians": medians}
    for scheduler, engine in engines.items():
        result.setdefault("jumps", {})[scheduler] = jumps(engine, inputs, 6)
    result["by_width"] = engines["elastic"].stats().by_width
    if simulated:
        result["simulated"] = simulate_model(medians, capacity)
    for engine in engines.values():
        engine.close()
    return result


def simulate_model(medians: dict[str, Any], capacity: float) -> dict[str, Any]:
    """The same loads in the simulator, from the measured lengths of runs on 1 and on all cores."""
    run_s = {
        1: NUM_CORES / capacity,
        NUM_CORES: medians["p50, 1 caller"]["single_stream"],
    }
    machine = Topology.synthetic(packages=1, cores_per_l3=NUM_CORES)
    results: dict[str, Any] = {}
    for load in LOADS:
        for scheduler in SCHEDULERS:
            streams = 1 if scheduler == "single_stream" else NUM_CORES
            tree = tree_of(partition(machine, num_streams=streams).streams)
            lengths = lambda cores: run_s.get(cores, run_s[1])  # noqa: E731
            if scheduler == "single_stream" and load * capacity * run_s[NUM_CORES] > 0.98:
                continue  # it does not end
            found = simulate(
                Machine(tree, lengths, NUM_CORES),
                poisson(load * capacity),
                is_elastic=scheduler == "elastic",
            )
            results.setdefault(f"mean at {load:.0%}", {})[scheduler] = found.mean
            results.setdefault(f"p99 at {load:.0%}", {})[scheduler] = found.p99
    return results


def show(name: str, result: dict[str, Any], console: Console) -> None:
    table = Table("work", *SCHEDULERS, "elastic against", "goal", title=name)
    for row, by in result["medians"].items():
        is_rate = row.startswith("requests/s")
        if is_rate:
            ratio, goal = by["elastic"] / by["multi_stream"], "multi_stream >= 0.97"
        elif row.startswith("p50"):
            ratio, goal = by["elastic"] / by["single_stream"], "single_stream <= 1.05"
        else:
            best = min(by["single_stream"], by["multi_stream"])
            ratio, goal = by["elastic"] / best, "the better <= 1.05"
        shown = [f"{by[s]:.0f}" if is_rate else f"{1e3 * by[s]:.2f} ms" for s in SCHEDULERS]
        table.add_row(row, *shown, f"{ratio:.2f}", goal)
    for phase in ("1 caller", "16 callers"):
        by = {scheduler: result["jumps"][scheduler][phase] for scheduler in SCHEDULERS}
        best = max(by["single_stream"], by["multi_stream"])
        shown = [f"{by[s]:.0f}" for s in SCHEDULERS]
        table.add_row(
            f"load jumps: {phase}", *shown, f"{by['elastic'] / best:.2f}", "the better >= 0.9"
        )
    console.print(table)


def plot(results: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for axes, (name, result) in zip(all_axes[0], results.items(), strict=True):
        for scheduler, colour in zip(
            SCHEDULERS, ("tab:blue", "tab:orange", "tab:green"), strict=True
        ):
            for source, style in (("medians", "o-"), ("simulated", "--")):
                by = result.get(source, {})
                points = [
                    (load, 1e3 * by[f"mean at {load:.0%}"][scheduler])
                    for load in LOADS
                    if scheduler in by.get(f"mean at {load:.0%}", {})
                ]
                if points:
                    label = scheduler if source == "medians" else f"{scheduler}, simulated"
                    axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
        limit = max(
            1e3 * result["medians"][f"mean at {LOADS[-1]:.0%}"][s]
            for s in ("elastic", "multi_stream")
        )
        axes.set(
            title=name,
            xlabel="load (share of capacity)",
            ylabel="mean latency, ms",
            ylim=(0, 1.3 * limit),
        )
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    parser.add_argument("--plot", metavar="FILE", help="latency against load; needs matplotlib")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = {}
    for name in args.models.split(","):
        results[name] = run_model(name, args.rounds, args.seconds, args.simulate)
        show(name, results[name], console)
    if args.export_path:
        Path(args.export_path).write_text(json.dumps(results, indent=2))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
