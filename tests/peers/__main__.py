"""The tests of DeepSparse and of onnxruntime, run against deepsched: python -m tests.peers

    pip install pytest parameterized requests
    git clone --depth 1 --branch v1.8.0 https://github.com/neuralmagic/deepsparse
    git clone --depth 1 --branch v1.32.0 https://github.com/microsoft/onnxruntime
    python -m tests.peers --deepsparse deepsparse --onnxruntime onnxruntime

Their wheels come without tests, and PyPI has no source of DeepSparse 1.8, so a checkout of each is
needed; of other versions will do. Nothing of theirs is kept here. stand_ins/ has what their tests
import: packages `deepsparse` and `sparsezoo` on top of deepsched and of small local models, and a
plugin of pytest that puts an Engine in the place of onnxruntime's InferenceSession.

Prints a table: each test that does not pass, and why; then how many do. Exits with status 1 if one
fails that DIFFERENCES does not know.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.peers.differences import DIFFERENCES

_STAND_INS = Path(__file__).parent / "stand_ins"

_MOST_SECONDS = 1200


@dataclass(frozen=True)
class Suite:
    folders: tuple[str, ...]
    """Of the checkout: what is copied."""
    start: str
    """Where the tests run."""
    tests: tuple[str, ...]
    """Files, as seen from there; those that a version does not have are left out."""
    options: tuple[str, ...]
    """Of pytest."""
    has_original: bool
    """Whether the tests can run without us as well: what fails there is no matter of ours."""


SUITES = {
    "deepsparse": Suite(
        folders=("tests",),
        start=".",
        tests=(
            "tests/test_engine.py",
            "tests/test_multi_engine.py",
            "tests/test_benchmark.py",
            "tests/test_check_hardware.py",
            "tests/deepsparse/benchmark/api/test_benchmarker.py",
            "tests/deepsparse/schedulers",
            "tests/utils/test_engine_mocking.py",
        ),
        # Else what a thread raises is only a warning.
        options=("-W", "error::pytest.PytestUnhandledThreadExceptionWarning"),
        has_original=False,
    ),
    "onnxruntime": Suite(
        folders=("onnxruntime/test/python", "onnxruntime/test/testdata"),
        start="onnxruntime/test",
        tests=(
            "python/onnxruntime_test_python.py",
            "python/onnxruntime_test_python_backend.py",
            "python/onnxruntime_test_python_mlops.py",
            "python/onnxruntime_test_python_nested_control_flow_op.py",
            "python/onnxruntime_test_python_sparse_matmul.py",
            "python/onnxruntime_test_float8.py",
            "python/onnxruntime_test_scatternd.py",
            "python/contrib_ops/onnx_test_trilu.py",
        ),
        options=("-p", "as_onnxruntime"),
        has_original=True,
    ),
}


@dataclass(frozen=True)
class Outcome:
    test: str
    verdict: str
    """passed, failed, skipped."""
    why: str = ""
    details: str = ""


def run(suite: Suite, checkout: Path, options: tuple[str, ...]) -> list[Outcome]:
    """Each test's outcome, in a copy of the checkout's tests."""
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        copy = Path(name) / "copy"
        for folder in suite.folders:
            shutil.copytree(checkout / folder, copy / folder, symlinks=True)
        start = copy / suite.start
        report = Path(name) / "report.xml"
        tests = [it for it in suite.tests if (start / it).exists()]
        here = Path(__file__).parents[2]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (_STAND_INS, start, here))),
            "PATH": os.pathsep.join([str(_STAND_INS / "bin"), os.environ["PATH"]]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DEEPSCHED_CACHE_DIR": f"{name}/cache",
            "DEEPSCHED_LEASE_DIR": f"{name}/leases",
            "PEERS_MODELS": f"{name}/models",
            "TMPDIR": name,  # DeepSparse's look for files that others leave there
        }
        command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull]
        command += [f"--rootdir={start}", f"--junitxml={report}", "--tb=short", *options]
        subprocess.run([*command, *tests], cwd=start, env=environment, timeout=_MOST_SECONDS)
        if not report.exists():
            raise SystemExit("pytest wrote no report; see above")
        return [_outcome(case) for case in ET.parse(report).iter("testcase")]


def _outcome(case: ET.Element) -> Outcome:
    test = f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            verdict = "skipped" if child.tag == "skipped" else "failed"
            message, details = child.get("message", ""), child.text or ""
            return Outcome(test, verdict, _one_line(message), f"{message} {details}")
    return Outcome(test, "passed")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:160]


def explained(name: str, outcome: Outcome, originally: dict[str, str]) -> str:
    """Why it is no fault of ours; empty if that is not known.

    Args:
        originally: verdicts by test without us.
    """
    if outcome.verdict == "skipped":
        return outcome.why
    if originally.get(outcome.test) == "failed":
        return "fails without deepsched, too"
    text = f"{outcome.test} {outcome.details}"
    return next((why for pattern, why in DIFFERENCES[name] if re.search(pattern, text)), "")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.peers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    for name in SUITES:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    args = vars(parser.parse_args())
    if not any(args.values()):
        parser.error(f"name a checkout.\n\n{__doc__}")
    is_known = True
    for name, checkout in args.items():
        if checkout is None:
            continue
        suite = SUITES[name]
        outcomes = run(suite, checkout, suite.options)
        originally = (
            {it.test: it.verdict for it in run(suite, checkout, ())} if suite.has_original else {}
        )
        print(f"\n| {name}'s test | | why |\n| --- | --- | --- |")
        for outcome in outcomes:
            if outcome.verdict != "passed":
                why = explained(name, outcome, originally)
                is_known &= bool(why)
                print(f"| {outcome.test} | {outcome.verdict} | {why or '?? ' + outcome.why} |")
        print(f"\n{name}: {dict(Counter(it.verdict for it in outcomes))}")
    return 0 if is_known else 1


if __name__ == "__main__":
    sys.exit(main())
