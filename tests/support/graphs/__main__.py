"""Random graphs for minutes, in child processes: python -m tests.support.graphs [--minutes 10]

A model that ends plain onnxruntime's process ends only a child. Each failure is kept as a file, and
printed with the engine's options. The last lines: how many graphs and operators were tried.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings

from deepsched.models.repeatability import all_nodes
from tests.support.graphs.checking import Unfit, open_contexts, try_model
from tests.support.graphs.growing import models
from tests.support.graphs.picking import operators_with_kernels
from tests.support.graphs.settings import settings_of_engines

_EACH = 150
"""Graphs of a child."""


def child(number: int, folder: Path) -> None:
    """Tries graphs; writes counts as JSON, and each failing model."""
    faulthandler.enable()
    logging.getLogger("deepsched").setLevel(logging.ERROR)
    counts: Counter[str] = Counter()
    operators: set[str] = set()
    current = folder / f"{number}.onnx"

    @seed(number)
    @settings(
        max_examples=_EACH,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(models(is_long=True), settings_of_engines)
    def try_one(model, setting):
        onnx.save(model.proto, current)
        try:
            try_model(model, setting, contexts)
        except Unfit:
            counts["plain onnxruntime does not open"] += 1
            return
        except Exception:
            counts["failed"] += 1
            kept = folder / f"failed-{number}-{counts['failed']}.onnx"
            onnx.save(model.proto, kept)
            print(f"{kept}: {setting}", flush=True)
            traceback.print_exc()
        counts["graphs"] += 1
        operators.update(f"{node.domain}.{node.op_type}" for node in all_nodes(model.proto))
        (folder / f"{number}.json").write_text(json.dumps([counts, sorted(operators)]))

    with open_contexts() as contexts:
        try_one()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.graphs")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.seed, args.child)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="graphs-"))
    environment = os.environ | {
        "DEEPSCHED_CACHE_DIR": str(folder / "cache"),
        "DEEPSCHED_LEASE_DIR": str(folder / "leases"),
    }
    counts: Counter[str] = Counter()
    operators: set[str] = set()
    number, end = args.seed, time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        command = [sys.executable, "-m", __spec__.parent, "--seed", str(number), "--child", folder]
        if subprocess.run(command, env=environment).returncode:
            counts["children that ended early"] += 1
            print(f"seed {number} ended early; its last whole model: {folder}/{number}.onnx")
        report = folder / f"{number}.json"
        if report.exists():
            found, names = json.loads(report.read_text())
            counts.update(found)
            operators.update(names)
        number += 1
    known = {f"{domain}.{name}" for domain, name in operators_with_kernels()}
    print(f"operators: {len(operators & known)} of {len(known)} with kernels")
    print(json.dumps(counts))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
