"""Runs onnx's own backend tests on deepsched.backend: python -m tests.support.onnx_suite

Prints a line a failure and, last, the counts as JSON. The tests run in child processes, so that a
crash is counted and does not end the run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import unittest
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

HANG_SECONDS = 60


def collect():
    """{name: test} of the CPU cases."""
    from onnx.backend.test.runner import Runner

    import deepsched.backend

    found = {}

    def walk(suite):
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                walk(test)
            elif test.id().endswith("_cpu"):
                found[test.id().rsplit(".", 1)[-1]] = test

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walk(Runner(deepsched.backend.DeepschedBackend, __name__).test_suite)
    return found


def run(names, results):
    """In a child: announces each test before it runs it, then tells how it went."""
    tests = collect()
    for name in sorted(tests) if names is None else names:
        results.put((name, "started", ""))
        result = unittest.TestResult()
        tests[name].run(result)
        problems = result.errors + result.failures
        outcome = "failed" if problems else "skipped" if result.skipped else "passed"
        results.put((name, outcome, problems[0][1].strip().splitlines()[-1] if problems else ""))
    results.put(None)


def run_all(names):
    """{name: outcome}, by children one after another."""
    context = multiprocessing.get_context("spawn")
    outcomes = {}
    while len(outcomes) < len(names):
        results = context.Queue()
        todo = [name for name in names if name not in outcomes]
        child = context.Process(target=run, args=(todo, results))
        child.start()
        current = None
        while True:
            try:
                report = results.get(timeout=HANG_SECONDS)
            except Exception:  # Empty: it hangs or has crashed
                outcomes[current] = "crashed or hung"
                break
            if report is None:
                break
            current, outcome, why = report
            if outcome != "started":
                outcomes[current] = outcome
                if why:
                    print(f"{current}: {outcome}: {why[:200]}")
        child.kill()
        child.join()
    return outcomes


def main():
    names = sorted(collect())
    num_shards = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_shards) as pool:
        shards = pool.map(run_all, (names[shard::num_shards] for shard in range(num_shards)))
        counts = Counter(outcome for outcomes in shards for outcome in outcomes.values())
    print(json.dumps(counts))


if __name__ == "__main__":
    sys.exit(main())
