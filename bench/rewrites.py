"""What the rules of deepsched.models.rewrites gain, each by itself and together.

    python -m bench.rewrites [--models inception_v1,densenet121] [--seconds 5] [-x out.json]

CPU time of plain onnxruntime, one thread, for the model as it is and rewritten; the two take turns,
and what is compared are medians of the rounds' ratios. The models: see bench.models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from bench.models import CASES, Case, load
from deepsched.errors import ModelNotFoundError
from deepsched.models.rewrites.agreement import compare
from deepsched.models.rewrites.catalog import RULES, rewrite
from deepsched.models.rewrites.rule import Rule

Feeds = dict[str, np.ndarray[Any, Any]]

_ROUND_S = 0.05


def open_session(
    case: Case, rules: Sequence[Rule]
) -> tuple[onnxruntime.InferenceSession, dict[str, int], int]:
    """(a session of the rewritten model, how often each rule fired, ms that rewriting took)."""
    model, folder = load(case)
    begin = time.thread_time()
    counts, config = rewrite(model, rules, partial(numpy_helper.to_array, base_dir=folder))
    rewriting_ms = 1e3 * (time.thread_time() - begin)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session, counts, round(rewriting_ms)


def make_feeds(session: onnxruntime.InferenceSession) -> Feeds:
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for info in session.get_inputs():
        if "float" in info.type:
            feeds[info.name] = rng.standard_normal(info.shape).astype(np.float32)
        else:  # a token, a mask or a rate
            value = np.full(info.shape, 16000) if not info.shape else np.ones(info.shape)
            feeds[info.name] = value.astype(np.int64)
    return feeds


class BoundRuns:
    """Runs a session with inputs that are bound once, so that little but its kernels is timed."""

    def __init__(self, session: onnxruntime.InferenceSession, feeds: Feeds) -> None:
        self.session = session
        self.binding = session.io_binding()
        for name, value in feeds.items():
            self.binding.bind_cpu_input(name, value)
        for info in session.get_outputs():
            self.binding.bind_output(info.name)

    def cpu_seconds(self, num_runs: int) -> float:
        """For one run."""
        begin = time.thread_time()
        for _ in range(num_runs):
            self.session.run_with_iobinding(self.binding)
        return (time.thread_time() - begin) / num_runs


def measure(case: Case, rules: Sequence[Rule], seconds: float) -> dict[str, Any]:
    plain, _, _ = open_session(case, ())
    rewritten, counts, rewriting_ms = open_session(case, rules)
    feeds = make_feeds(plain)
    moved = compare(plain.run(None, feeds), rewritten.run(None, feeds))
    both = [BoundRuns(it, feeds) for it in (plain, rewritten)]
    num_runs = max(1, int(_ROUND_S / max(it.cpu_seconds(2) for it in both)))
    figures = []
    end = time.monotonic() + seconds
    while len(figures) < 5 or time.monotonic() < end:
        figures.append([it.cpu_seconds(num_runs) for it in both])
    ratio = statistics.median(other / one for one, other in figures)
    return {
        # Without a rule the two are the same model, and a ratio would be of noise.
        "ratio": ratio if counts else 1.0,
        "plain_ms": 1e3 * statistics.median(one for one, _ in figures),
        "places": counts,
        "moved": moved.by,
        "rewriting_ms": rewriting_ms,
    }


def measure_all(name: str, seconds: float) -> dict[str, Any]:
    case = CASES[name]
    found = measure(case, RULES, seconds)
    fitting = [rule for rule in RULES if rule.name in found["places"]]
    alone = {it.name: measure(case, [it], seconds)["ratio"] for it in fitting[1:] and fitting}
    return {**found, "alone": alone, "goal": case.goal}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    args = parser.parse_args()
    results = {}
    table = Table(
        "model", "plain, ms", "rewritten / plain", "goal", "each alone", "places", "moved"
    )
    for name in args.models.split(","):
        try:
            found = measure_all(name, args.seconds)
        except ModelNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        results[name] = found
        table.add_row(
            name,
            f"{found['plain_ms']:.3g}",
            f"{found['ratio']:.3f}",
            f"{found['goal']:.2f}",
            ", ".join(f"{rule} {ratio:.3f}" for rule, ratio in found["alone"].items()),
            ", ".join(f"{rule} {count}" for rule, count in found["places"].items()),
            f"{found['moved']:.1e}",
        )
    Console(width=160 if not sys.stdout.isatty() else None).print(table)
    if args.export_path:
        Path(args.export_path).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
