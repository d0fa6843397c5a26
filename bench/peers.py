"""deepsched beside plain onnxruntime, in the usual ways to use it from threads.

    python -m bench.peers [--models resnet50,squeezenet] [--seconds 2] [--rounds 5] [-x out.json]

Each form answers the same closed-loop load from 1, 2, 4 and 8 Python threads. The forms take turns
within a round, so that a machine whose speed drifts treats them alike; what is compared are ratios
of medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from deepsched import Topology, compile_model
from deepsched.benchmark import bundled_model, measure

NUM_CORES = len(Topology.detect().cores)
RAW = ("raw: all threads", "raw: 1 thread, shared", "raw: one per stream")
OURS = ("deepsched single_stream", "deepsched multi_stream")


def make_mlp(width: int = 128, layers: int = 3) -> bytes:
    """A small multi-layer perceptron, where the runtime is most of the cost."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        matrix = rng.standard_normal((width, width)).astype(np.float32) / np.sqrt(width)
        weights.append(onnx.numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = "y" if layer == layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [value]))
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "mlp", shapes[:1], shapes[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


MODELS: dict[str, Callable[[], str | bytes]] = {
    "resnet50": lambda: bundled_model("resnet50"),
    "squeezenet": lambda: bundled_model("squeezenet"),
    "shufflenet": lambda: bundled_model("shufflenet"),
    "mlp 3x128": make_mlp,
}


def raw_session(model: str | bytes, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class RawForms:
    """The ways to call plain onnxruntime from several threads."""

    def __init__(self, model: str | bytes) -> None:
        self.all_threads = raw_session(model, NUM_CORES)
        self.shared = raw_session(model, 1)
        self.per_stream = [raw_session(model, 1) for _ in range(NUM_CORES)]
        self.name = self.shared.get_inputs()[0].name
        self.idle = list(self.per_stream)

    def run_all_threads(self, inputs: list[Any]) -> Any:
        return self.all_threads.run(None, {self.name: inputs[0]})

    def run_shared(self, inputs: list[Any]) -> Any:
        return self.shared.run(None, {self.name: inputs[0]})

    def run_per_stream(self, inputs: list[Any]) -> Any:
        # The usual pool: whoever finds a session idle takes it; the callers beyond them share.
        try:
            session = self.idle.pop()
        except IndexError:
            return self.per_stream[0].run(None, {self.name: inputs[0]})
        try:
            return session.run(None, {self.name: inputs[0]})
        finally:
            self.idle.append(session)


def compare(model: str | bytes, callers: list[int], seconds: float, rounds: int) -> dict[str, Any]:
    """{callers: {form: {"items_per_sec": median, "p50_ms": median, "rounds": [...]}}}."""
    raw = RawForms(model)
    with (
        compile_model(model, scheduler="single_stream") as single,
        compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as multi,
    ):
        inputs = single.generate_random_inputs()
        runs = (raw.run_all_threads, raw.run_shared, raw.run_per_stream, single.run, multi.run)
        forms = dict(zip(RAW + OURS, runs, strict=True))
        results: dict[str, Any] = {}
        for count in callers:
            seen: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
            for _ in range(rounds):
                for form, run in forms.items():
                    result = measure(
                        run, inputs, callers=count, seconds=seconds, warmup_seconds=seconds / 5
                    )
                    seen[form].append((result.items_per_sec, result.percentile(50)))
            results[str(count)] = {
                form: {
                    "items_per_sec": statistics.median(rate for rate, _ in pairs),
                    "p50_ms": statistics.median(p50 for _, p50 in pairs),
                    "rounds": pairs,
                }
                for form, pairs in seen.items()
            }
    return results


def show(name: str, results: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{name}, {NUM_CORES} cores: items/sec (p50 ms)")
    for column in ("callers", *RAW, *OURS, "multi / best raw", "single p50 / raw p50"):
        table.add_column(column, justify="right")
    for callers, forms in results.items():
        best = max(forms[form]["items_per_sec"] for form in RAW)
        table.add_row(
            callers,
            *(
                f"{forms[form]['items_per_sec']:,.0f} ({forms[form]['p50_ms']:.3g})"
                for form in RAW + OURS
            ),
            f"{forms[OURS[1]]['items_per_sec'] / best:.2f}",
            f"{forms[OURS[0]]['p50_ms'] / forms[RAW[0]]['p50_ms']:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--callers", default="1,2,4,8", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    everything = {}
    for name in args.models.split(","):
        model = MODELS[name]()
        callers = [int(count) for count in args.callers.split(",")]
        everything[name] = compare(model, callers, args.seconds, args.rounds)
        show(name, everything[name], console)
        if args.export_path:
            with open(args.export_path, "w") as file:
                json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
