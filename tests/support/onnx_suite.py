"""Runs onnx's own backend tests on deepsched.backend: python -m tests.support.onnx_suite

Those that fail run on plain onnxruntime as well. Prints a line a failure and, last, as JSON the
counts and the names of the tests that plain onnxruntime passes and we do not. The tests run in
child processes, so that a crash is counted and does not end the run.
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
from functools import partial

HANG_SECONDS = 60


def collect(backend):
    """{name: test} of the CPU cases; `backend` is "deepsched" or "onnxruntime"."""
    from onnx.backend.test.runner import Runner

    found = {}

    def walk(suite):
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                walk(test)
            elif test.id().endswith("_cpu"):
                found[test.id().rsplit(".", 1)[-1]] = test

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walk(Runner(_backend(backend), __name__).test_suite)
    return found


def _backend(name):
    if name == "deepsched":
        from deepsched.backend import DeepschedBackend

        return DeepschedBackend
    from onnxruntime.backend.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def run(backend, names, results):
    """In a child: announces each test before it runs it, then tells how it went."""
    tests = collect(backend)
    for name in names:
        results.put((name, "started", ""))
        result = unittest.TestResult()
        tests[name].run(result)
        problems = result.errors + result.failures
        outcome = "failed" if problems else "skipped" if result.skipped else "passed"
        results.put((name, outcome, problems[0][1].strip().splitlines()[-1] if problems else ""))
    results.put(None)


def run_shard(backend, names):
    """{name: outcome}, by children one after another."""
    context = multiprocessing.get_context("spawn")
    outcomes = {}
    while len(outcomes) < len(names):
        results = context.Queue()
        todo = [name for name in names if name not in outcomes]
        child = context.Process(target=run, args=(backend, todo, results))
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
                    print(f"{backend}: {current}: {outcome}: {why[:200]}")
        child.kill()
        child.join()
    return outcomes


def run_all(backend, names):
    """{name: outcome}, by as many children at a time as there are CPUs."""
    num_shards = len(os.sched_getaffinity(0))
    shards = (names[shard::num_shards] for shard in range(num_shards))
    outcomes = {}
    with ThreadPoolExecutor(num_shards) as pool:
        for found in pool.map(partial(run_shard, backend), shards):
            outcomes.update(found)
    return outcomes


def main():
    ours = run_all("deepsched", sorted(collect("deepsched")))
    plain = run_all("onnxruntime", [name for name in ours if ours[name] == "failed"])
    behind = sorted(name for name in plain if plain[name] == "passed")
    print(json.dumps({"counts": Counter(ours.values()), "behind": behind}))


if __name__ == "__main__":
    sys.exit(main())
