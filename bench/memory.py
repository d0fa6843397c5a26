"""Memory of a model's first start, against plain onnxruntime's.

    python -m bench.memory [MODEL.onnx ...] [-x out.json]

For each model, with its weights inside of the file and outside, and with the cache and without it,
what a process takes that opens the model and runs it once:

* the most that was resident (VmHWM), which counts pages of mapped files as well;
* the most that the kernel could not have taken back, sampled each millisecond: allocated memory
  and, in a cgroup, files in /dev/shm;
* whether it lives in a cgroup whose limit is GOAL times the first figure of plain onnxruntime.

Where no cgroup can be made, the last is left out.

    python -m bench.memory --shrink [-x out.json]

What one large input leaves behind, what `trim` and `shrink_memory` give back, and what that costs:
run lengths with and without it, by turns, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from tests.support.cgroups import Group

GOAL = 1.25
_PATIENCE_S = 300
"""A process that only waits for pages of its files to be read again does not live."""

_PLAIN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
session.run(None, {
    it.name: np.ones([n if isinstance(n, int) else 1 for n in it.shape], types[it.type])
    for it in session.get_inputs()
})
"""

_OURS = """
import sys
from deepsched import compile_model
with compile_model(sys.argv[1], cache_dir=sys.argv[2] or None) as engine:
    engine.run(engine.generate_random_inputs())
"""

_REPORT = """
import re
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


class Need(NamedTuple):
    """What a process takes, in bytes."""

    peak: int
    """The most that was resident."""
    kept: int
    """The most that the kernel could not have taken back."""


def need(code: str, model: Path, cached: bool = False) -> Need:
    """What opening and running a model takes; `cached`: with an empty cache on disk."""
    with tempfile.TemporaryDirectory() as folder, limited(None) as group:
        args = [sys.executable, "-c", code + _REPORT, str(model), folder if cached else ""]
        start = subprocess.Popen if group is None else group.start
        process = start(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        kept = 0
        while process.poll() is None:
            kept = max(kept, kept_now(process.pid, group))
            time.sleep(0.001)
        out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{model}: {err}")
    return Need(int(out.split()[-1]) * 1024, kept)


def kept_now(pid: int, group: Group | None) -> int:
    try:
        if group is None:
            status = Path(f"/proc/{pid}/status").read_text()
            return sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\s*(\d+)", status)) * 1024
        pairs = map(str.split, group.read("memory", "memory.stat").splitlines())
        counts = {name: int(count) for name, count in pairs}
        return counts.get("anon", counts.get("rss", 0)) + counts["shmem"]
    except (OSError, KeyError):  # it has just ended
        return 0


def lives(code: str, model: Path, limit: int, cached: bool) -> bool | None:
    """Whether it starts under that limit; None: no cgroup can be made here."""
    with tempfile.TemporaryDirectory() as folder, limited(limit) as group:
        if group is None:
            return None
        args = [sys.executable, "-c", code, str(model), folder if cached else ""]
        try:
            return bool(group.run(args, timeout=_PATIENCE_S).returncode == 0)
        except subprocess.TimeoutExpired:
            return False


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[Group | None]:
    group = Group()
    try:
        try:
            group.add("memory")
            if limit is not None:
                group.set_memory(limit)
        except OSError:
            yield None
        else:
            yield group
    finally:
        group.remove()


def make_models() -> dict[str, onnx.ModelProto]:
    """192 MB of weights in matrices, and as much in filters, which ONNX Runtime reorders; with an
    open batch."""
    rng = np.random.default_rng(0)

    def chain(op_type: str, shape: list[int], rest: list[int], count: int) -> onnx.ModelProto:
        nodes, weights, value = [], [], "x"
        for index in range(count):
            content = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
            weights.append(numpy_helper.from_array(content, f"w{index}"))
            pads = {"pads": [1, 1, 1, 1]} if op_type == "Conv" else {}
            nodes.append(helper.make_node(op_type, [value, f"w{index}"], [f"m{index}"], **pads))
            value = "y" if index == count - 1 else f"h{index}"
            nodes.append(helper.make_node("Relu", [f"m{index}"], [value]))
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *rest])
            for name in ("x", "y")
        ]
        graph = helper.make_graph(nodes, op_type, infos[:1], infos[1:], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return {
        "MatMul 12 x 16 MB": chain("MatMul", [2000, 2000], [2000], 12),
        "MatMul 1 x 192 MB": chain("MatMul", [6928, 6928], [6928], 1),
        "Conv 8 x 23 MB": chain("Conv", [800, 800, 3, 3], [800, 8, 8], 8),
    }


def save_both(model: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """The same model with its weights inside, and with them in a file beside it."""
    folder.mkdir()
    onnx.save(model, folder / "inside.onnx")
    onnx.save(model, folder / "outside.onnx", save_as_external_data=True, location="weights.bin")
    return {"inside": folder / "inside.onnx", "outside": folder / "outside.onnx"}


def rows_of(name: str, weights: str, model: Path) -> list[dict[str, Any]]:
    plain = need(_PLAIN, model)
    rows = []
    for cached in (True, False):
        ours = need(_OURS, model, cached)
        rows.append(
            {
                "model": name,
                "weights": weights,
                "cache": "on" if cached else "off",
                "onnxruntime": plain._asdict(),
                "deepsched": ours._asdict(),
                "peak_ratio": ours.peak / plain.peak,
                "kept_ratio": ours.kept / plain.kept,
                "lives": lives(_OURS, model, int(plain.peak * GOAL), cached),
            }
        )
    return rows


_SHRINK = """
import json, re, statistics, sys, time
import numpy as np
from deepsched import compile_model

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

def seconds(picture, shrinks):
    begin = time.perf_counter()
    engine.run([picture], shrink_memory=shrinks)
    return time.perf_counter() - begin

small, large = (np.ones((1, 3, n, n), np.float32) for n in (64, 1024))
with compile_model(sys.argv[1], batch_size=None, cache_dir=None) as engine:
    engine.run([small])
    found = {"before": resident()}
    engine.run([large])
    found["after a large input"] = resident()
    engine.trim()
    found["after trim"] = resident()
    engine.run([large], shrink_memory=True)
    found["after one that shrinks"] = resident()
    for name, picture in (("small", small), ("large", large)):
        pairs = [(seconds(picture, False), seconds(picture, True)) for _ in range(21)]
        # One that shrinks leaves nothing to the next, so that one pays as well.
        kept = [seconds(picture, False) for _ in range(22)][1:]
        found[f"{name}: run, kept"] = statistics.median(kept)
        found[f"{name}: run, shrunk"] = statistics.median(shrunk for _, shrunk in pairs)
print(json.dumps(found))
"""


def measure_shrinking() -> dict[str, float]:
    """Bytes resident, and seconds."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index, channels in enumerate((3, 32, 32)):
        filters = rng.standard_normal((32, channels, 3, 3), np.float32) / 10
        weights.append(numpy_helper.from_array(filters, f"w{index}"))
        value = f"h{index - 1}" if index else "x"
        nodes.append(
            helper.make_node("Conv", [value, f"w{index}"], [f"h{index}"], pads=[1, 1, 1, 1])
        )
    nodes.append(helper.make_node("GlobalAveragePool", ["h2"], ["y"]))
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "height", "width"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "pictures", infos[:1], infos[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        args = [sys.executable, "-c", _SHRINK, str(path)]
        ran = subprocess.run(args, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files, instead of made-up ones")
    parser.add_argument("-x", "--export_path", type=Path, help="write the figures there as JSON")
    parser.add_argument("--shrink", action="store_true", help="what one large input leaves behind")
    args = parser.parse_args()
    if args.shrink:
        found = measure_shrinking()
        for what, figure in found.items():
            unit, scale = ("MB", 1e-6) if figure > 1e5 else ("ms", 1e3)
            print(f"{what}: {figure * scale:.2f} {unit}")
        if args.export_path:
            args.export_path.write_text(json.dumps(found, indent=2))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        if args.models:
            models = [(path.name, "as they are", path) for path in args.models]
        else:
            models = [
                (name, weights, path)
                for name, model in make_models().items()
                for weights, path in save_both(model, Path(made, re.sub(r"\W", "", name))).items()
            ]
        for name, weights, path in models:
            rows += rows_of(name, weights, path)
    limit = f"lives in {GOAL} x onnxruntime's peak"
    table = Table("model", "weights", "cache", "peak, MB", "ratio", "kept, MB", "ratio", limit)
    for row in rows:
        cells = [row["model"], row["weights"], row["cache"]]
        for figure in ("peak", "kept"):
            mine, its = (row[who][figure] for who in ("deepsched", "onnxruntime"))
            cells += [f"{mine / 1e6:.0f} / {its / 1e6:.0f}", f"{mine / its:.2f}"]
        table.add_row(*cells, {True: "yes", False: "no", None: "-"}[row["lives"]])
    print(f"deepsched / plain onnxruntime; goal: at most {GOAL} times its peak")
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    if args.export_path:
        args.export_path.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
