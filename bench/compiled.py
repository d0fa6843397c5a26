"""What the compiled form saves: memory, time to open; and that it costs nothing else.

    python -m bench.compiled [-x out.json]

Memory is the process's PSS less what it had before the engine was made, each in a process of its
own; times are medians of rounds in which the forms take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from bench.models import make_mlp
from deepsched import Context, Engine, Topology
from deepsched.benchmark import bundled_model
from deepsched.models.locations import default_folder

MODELS: dict[str, Callable[[], str | bytes]] = {
    "ResNet-50": lambda: bundled_model("resnet50"),
    "VGG-19": lambda: bundled_model("vgg19"),
    "MLP 8x1024": lambda: make_mlp(1024, 8),
}
MACHINE = Topology.synthetic(packages=1, cores_per_l3=16)


def process_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Pss: +(\d+)", rollup, re.M)[1]) * 1024  # type: ignore[index]


def use_all_streams(engine: Engine) -> None:
    inputs = engine.generate_random_inputs()
    while any(stream.done == 0 for stream in engine.stats().streams):
        list(engine.map([inputs] * (4 * engine.num_streams)))


def report_memory(name: str, num_streams: int) -> None:
    """In a process of its own: prints figures, waits for a line, prints them again."""
    model = MODELS[name]()
    with Context(topology=MACHINE, num_streams=num_streams, pin="none") as context:
        before = process_bytes()
        engine = Engine(model, 1, context=context, cache_dir=default_folder())
        use_all_streams(engine)
        for _ in range(2):
            memory = engine.memory()
            print(
                json.dumps(
                    {
                        "process": process_bytes() - before,
                        "activations": sum(memory.activations),
                        "weights_shared": memory.weights_shared,
                        "weights_private": memory.weights_private,
                    }
                ),
                flush=True,
            )
            sys.stdin.readline()


def start(name: str, num_streams: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.compiled", "--memory", name, str(num_streams)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str], ask: bool = False) -> dict[str, int]:
    assert process.stdin is not None and process.stdout is not None
    if ask:
        process.stdin.write("\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())  # type: ignore[no-any-return]


def memory_rows(name: str) -> list[list[Any]]:
    figures = {}
    for num_streams in (1, 8):
        process = start(name, num_streams)
        figures[num_streams] = answer(process)
        process.communicate("\n")
    one, eight = figures[1], figures[8]
    aside = [it["process"] - it["activations"] for it in (one, eight)]
    first, second = start(name, 1), None
    answer(first)
    second = start(name, 1)
    answer(second)
    both = answer(first, ask=True)
    other = second.communicate("\n\n")[0].splitlines()[-1]
    shared = both["weights_shared"] + json.loads(other)["weights_shared"]
    first.communicate("\n")
    mb = 1e-6
    return [
        [
            f"{name}, memory, 8 streams against 1, activations aside",
            f"{aside[1] * mb:.0f} against {aside[0] * mb:.0f} MB; activations "
            f"{eight['activations'] * mb:.0f} and {one['activations'] * mb:.0f}",
            aside[1] / aside[0],
            "<= 1.25",
        ],
        [
            f"{name}, weights of two processes (PSS) against one's",
            f"{shared * mb:.0f} against {one['weights_shared'] * mb:.0f} MB",
            shared / one["weights_shared"],
            "1.00",
        ],
    ]


def plain_session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def write_seconds(num_bytes: int, folder: str) -> float:
    data = memoryview(np.random.default_rng(0).bytes(2**20))
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        begin = time.perf_counter()
        for _ in range(num_bytes // 2**20):
            file.write(data)
        return time.perf_counter() - begin


def opening_rows(folder: str, num_rounds: int = 7) -> list[list[Any]]:
    model = bundled_model("resnet50")
    seen: dict[str, list[float]] = {"plain": [], "cold": [], "warm": [], "write": []}
    with Context(topology=MACHINE, num_streams=4, pin="none") as context:

        def open_engine(cache: str) -> Engine:
            return Engine(model, 1, context=context, cache_dir=cache)

        warm = os.path.join(folder, "warm")
        for _ in range(3):  # the last finds files old enough to be taken as checked, and hashed
            engine = open_engine(warm)
            time.sleep(0.2)
        size = engine.compiled.weights_bytes
        plain_session(model)
        for number in range(num_rounds):
            cold = os.path.join(folder, f"cold{number}")
            seen["plain"].append(seconds(lambda: plain_session(model)))
            seen["cold"].append(seconds(lambda cold=cold: open_engine(cold)))  # type: ignore[misc]
            seen["warm"].append(seconds(lambda: open_engine(warm)))
            seen["write"].append(write_seconds(size, folder))
        plain, cold, warm, write = (statistics.median(seen[name]) for name in seen)
        bound = 1.5 * plain + write
        return [
            [
                "ResNet-50, 4 streams from a warm cache, against one plain session",
                f"{1e3 * warm:.0f} against {1e3 * plain:.0f} ms",
                warm / plain,
                "<= 0.30",
            ],
            [
                "ResNet-50, cold, against 1.5 x one plain session + writing the file",
                f"{1e3 * cold:.0f} against {1e3 * bound:.0f} ms",
                cold / bound,
                "<= 1.00",
            ],
        ]


def save_with_weights(name: str, path: str) -> None:
    """A bundled model, whose file says how to fill its weights, as one with random weights inside
    the file."""
    model = onnx.load(bundled_model(name))
    shapes = {it.name: onnx.numpy_helper.to_array(it) for it in model.graph.initializer}
    rng = np.random.default_rng(0)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and len(shape := shapes[node.input[0]]) > 1:
            weights = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]))
            weights = weights.astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weights, node.output[0]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.ir_version = 4  # the first in which an initializer need not be an input
    onnx.save(model, path)


def large_row(folder: str, num_rounds: int = 5) -> list[Any]:
    model = os.path.join(folder, "vgg19.onnx")
    save_with_weights("vgg19", model)
    plain, warm = [], []
    with Context(num_cores=1) as context:

        def open_engine() -> Engine:
            return Engine(model, 1, context=context, cache_dir=os.path.join(folder, "large"))

        for _ in range(2):
            open_engine()
        for _ in range(num_rounds):
            plain.append(seconds(lambda: plain_session(model)))
            warm.append(seconds(open_engine))
    ratio = statistics.median(warm) / statistics.median(plain)
    return [
        f"VGG-19, {os.path.getsize(model) / 1e6:.0f} MB, warm, against a plain session",
        f"{1e3 * statistics.median(warm):.0f} against {1e3 * statistics.median(plain):.0f} ms",
        ratio,
        "<= 0.10",
    ]


def speed_row(name: str, num_rounds: int = 7) -> list[Any]:
    """One request at a time, so that the one difference is the form of the model."""
    model = MODELS[name]()
    with Context(num_cores=1) as context:
        engine = Engine(model, 1, context=context, cache_dir=default_folder())
        session = plain_session(model)
        inputs = engine.generate_random_inputs()
        feed = dict(zip(engine.input_names, inputs, strict=True))
        count = max(3, int(0.5 / seconds(lambda: session.run(None, feed))))
        mine, its = [], []
        for _ in range(num_rounds):
            mine.append(min(seconds(lambda: engine.run(inputs)) for _ in range(count)))
            its.append(min(seconds(lambda: session.run(None, feed)) for _ in range(count)))
        same = all(
            np.array_equal(a, b)
            for a, b in zip(engine.run(inputs), session.run(None, feed), strict=True)
        )
        speed = statistics.median(its) / statistics.median(mine)
        figures = (
            f"{1e3 * statistics.median(mine):.2f} against {1e3 * statistics.median(its):.2f} ms"
        )
        return [
            f"{name}, speed of runs, outputs {'' if same else 'NOT '}bit for bit the same",
            figures,
            speed,
            ">= 0.99",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        report_memory(args.memory[0], int(args.memory[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSCHED_CACHE_DIR"] = folder
        rows = [*opening_rows(folder), large_row(folder)]
        rows += [speed_row(name) for name in MODELS]
        rows += [row for name in MODELS for row in memory_rows(name)]
    table = Table("work", "figures", "ratio", "goal")
    for work, figures, ratio, goal in rows:
        table.add_row(work, figures, f"{ratio:.2f}", goal)
    Console(width=160 if not sys.stdout.isatty() else None).print(table)
    if args.export_path:
        Path(args.export_path).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
