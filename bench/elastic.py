"""Elastic against the fixed schedulers, at every load.

    python -m bench.elastic [--models squeezenet,mlp] [--rounds 5] [-x out.json] [--plot out.png]

Within a round the schedulers take turns; what is compared are medians over the rounds in which the
machine was in one state (deepsched/machine/state.py).
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from bench.models import make_mlp
from bench.peers import NUM_CORES
from deepsched import Engine, compile_model
from deepsched.benchmark import bundled_model, measure
from deepsched.machine.state import Conditions, StateWatch, by_state, states_of, summarize

SCHEDULERS = ("single_stream", "multi_stream", "elastic")
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9)
CALLERS = (1, 2, 3, 4, 8, 16)


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
    "densenet121": lambda: bundled_model("densenet121"),
    "mlp": lambda: make_mlp(1024, 8),
    "encoder": make_encoder,
}


def settle() -> None:
    """Lets the threads of the scheduler that ran last fall asleep."""
    time.sleep(0.03)


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


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Figures:
    """What was measured, by the row of the table, with the state that the machine was in."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, float]] = []
        self._conditions: list[Conditions] = []

    def add(self, row: str, scheduler: str, value: float, conditions: Conditions) -> None:
        self._rows.append((row, scheduler, value))
        self._conditions.append(conditions)

    def summary(self) -> str:
        """How often each state was seen."""
        return summarize(states_of(self._conditions))

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """By state and row: of each scheduler, if all were measured in that state."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for state, rows in by_state(self._conditions, self._rows).items():
            for row in dict.fromkeys(row for row, _, _ in rows):
                values = {
                    scheduler: [value for of, by, value in rows if (of, by) == (row, scheduler)]
                    for scheduler in SCHEDULERS
                }
                if all(values.values()):
                    found.setdefault(str(state), {})[row] = {
                        scheduler: statistics.median(of) for scheduler, of in values.items()
                    }
        return found


def run_model(name: str, num_rounds: int, seconds: float, loads: Sequence[float]) -> dict[str, Any]:
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
    figures = Figures()
    capacity = 0.0
    for _ in range(num_rounds):
        for callers in CALLERS:
            for scheduler, engine in engines.items():
                settle()
                result = measure(
                    engine.run, inputs, callers=callers, seconds=seconds, warmup_seconds=0.2
                )
                assert result.conditions is not None
                rate = result.items_per_sec
                capacity = max(capacity, rate)
                figures.add(f"requests/s, {callers} callers", scheduler, rate, result.conditions)
    for number in range(num_rounds):
        for load in loads:
            for scheduler, engine in engines.items():
                settle()
                rate = load * capacity
                # Enough for a p99 in all rounds together.
                length = max(2 * seconds, min(200 / rate, 8.0))
                watch = StateWatch()
                latencies = open_loop(engine, inputs, rate, length, seed=number)
                seen = watch.end()
                figures.add(f"mean at {load:.0%}", scheduler, statistics.fmean(latencies), seen)
                figures.add(f"p99 at {load:.0%}", scheduler, percentile(latencies, 0.99), seen)
    result = {
        "capacity": capacity,
        "states": figures.summary(),
        "medians": figures.medians(),
        "by_width": engines["elastic"].stats().by_width,
    }
    for engine in engines.values():
        engine.close()
    return result


def show(name: str, result: dict[str, Any], console: Console) -> None:
    console.print(f"{name}: {result['states']}")
    for state, medians in result["medians"].items():
        table = Table("work", *SCHEDULERS, "elastic / best", "goal", title=f"{name}, {state}")
        for row, by in medians.items():
            is_rate = row.startswith("requests/s")
            fixed = [by["single_stream"], by["multi_stream"]]
            ratio = by["elastic"] / (max(fixed) if is_rate else min(fixed))
            shown = [f"{by[s]:.0f}" if is_rate else f"{1e3 * by[s]:.2f} ms" for s in SCHEDULERS]
            table.add_row(row, *shown, f"{ratio:.2f}", ">= 0.97" if is_rate else "<= 1.05")
        console.print(table)


def plot(results: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for axes, (name, result) in zip(all_axes[0], results.items(), strict=True):
        # Of the state that was seen most.
        medians = next(iter(result["medians"].values()))
        for scheduler, colour in zip(
            SCHEDULERS, ("tab:blue", "tab:orange", "tab:green"), strict=True
        ):
            points = [
                (load, 1e3 * medians[f"mean at {load:.0%}"][scheduler])
                for load in LOADS
                if f"mean at {load:.0%}" in medians
            ]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=scheduler)
        limit = max(
            1e3 * medians[f"mean at {LOADS[-1]:.0%}"][s] for s in ("elastic", "multi_stream")
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
    parser.add_argument("--closed", action="store_true", help="callers only, no open loop")
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    parser.add_argument("--plot", metavar="FILE", help="latency against load; needs matplotlib")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = {}
    for name in args.models.split(","):
        results[name] = run_model(name, args.rounds, args.seconds, () if args.closed else LOADS)
        show(name, results[name], console)
    if args.export_path:
        Path(args.export_path).write_text(json.dumps(results, indent=2))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
