"""Contexts that follow the cpuset, the mask and the quota while they serve."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepsched import Context, Topology, errors
from tests.support.cgroups import limits

needs_two_cpus = pytest.mark.skipif(
    not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"
)

# Serves without a pause; a line of stdin is the CPUs that it is to move to.
SERVING = """
import os, sys, threading
import numpy as np
from deepsched import Context, Engine
from tests.support import models

x = [np.ones((4, 256), np.float32)]
end, failures = threading.Event(), []
options = {"cores": "lease"} if sys.argv[1] == "lease" else {}
with Context(follow="cpuset", **options) as context:
    engine = Engine(models.gemm(), 4, context=context)
    expected = engine.run(x)[0].tobytes()

    def serve():
        while not end.is_set():
            try:
                if engine.run(x)[0].tobytes() != expected:
                    failures.append("another answer")
            except BaseException as error:
                failures.append(repr(error))

    thread = threading.Thread(target=serve)
    thread.start()
    print("serving", flush=True)
    for line in sys.stdin:
        wanted = tuple(map(int, line.split()))
        while context.topology.cpus[: len(wanted)] != wanted or context.num_cores != len(wanted):
            end.wait(0.01)
        print(context.num_cores, context.topology.cpu_quota, flush=True)
    end.set()
    thread.join()
    print(failures[:3], engine.stats().failed, engine.stats().done > 0)
"""


def set_mask(pid, cpus):
    """As `taskset --all-tasks` does, which gives up where a thread ends meanwhile, as in a move."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


@needs_two_cpus
@pytest.mark.field
@pytest.mark.parametrize("cores", ["share", "lease"])
def test_a_context_moves_with_its_cpuset_and_its_mask(cores):
    with limits(cpuset="0-1") as group:
        serving = group.start(
            [sys.executable, "-c", SERVING, cores],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )

        def expect(cpus):
            serving.stdin.write(f"{cpus}\n")
            serving.stdin.flush()
            return serving.stdout.readline().split()

        assert serving.stdout.readline() == "serving\n", serving.stderr.read()
        group.set_cpuset("1")
        assert expect("1") == ["1", "None"]
        if cores == "share":  # a lease keeps the size that it has got
            group.set_cpuset("0-1")
            assert expect("0 1") == ["2", "None"]
            set_mask(serving.pid, {0})
            assert expect("0") == ["1", "None"]
        out, err = serving.communicate(timeout=30)
    assert out == "[] 0 True\n", err


@needs_two_cpus
@pytest.mark.field
def test_a_context_moves_with_its_quota():
    with limits(cpuset="0-1", cpus=(200_000, 100_000)) as group:
        serving = group.start(
            [sys.executable, "-c", SERVING, "share"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert serving.stdout.readline() == "serving\n", serving.stderr.read()
        group.set_cpus(100_000, 100_000)
        serving.stdin.write("0\n")
        serving.stdin.flush()
        assert serving.stdout.readline().split() == ["1", "1.0"]
        out, err = serving.communicate(timeout=30)
    assert out == "[] 0 True\n", err


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(errors.OptionError, match="follow must be 'cpuset' or None"):
        Context(follow="mask")
    with pytest.raises(errors.OptionError, match="leave topology out"):
        Context(follow="cpuset", topology=Topology.synthetic(), pin="none")


def test_the_thread_that_follows_ends_with_its_context():
    with Context(follow="cpuset") as context:
        assert f"{context._shared.name}-follow" in _thread_names()
    assert not any(name.endswith("-follow") for name in _thread_names())


def _thread_names():
    return {it.read_text().strip() for it in Path("/proc/self/task").glob("*/comm")}
