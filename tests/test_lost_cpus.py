"""CPUs that are taken away from a process while it serves, and given back: requests go on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from tests.support.cgroups import limits

needs_two_cpus = pytest.mark.skipif(
    not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"
)

# Requests by each way in, without a pause, while the CPUs change; a line of stdin a change.
SERVING = """
import asyncio, logging, logging.handlers, os, sys, threading
import numpy as np
from deepsched import compile_model
from tests.support import models

x = [np.ones((4, 256), np.float32)]
failures, counts, masks_at_end, end = [], [0] * 4, set(), threading.Event()
told = logging.handlers.BufferingHandler(1000)
logging.getLogger().addHandler(told)


def allowed_cpus():
    found = {}
    for thread in os.listdir("/proc/self/task"):
        lines = open(f"/proc/self/task/{thread}/status").read().splitlines()
        fields = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
        found[fields["Name"]] = fields["Cpus_allowed_list"]
    return found


with compile_model(models.gemm(), 4, scheduler=sys.argv[1], num_streams=2) as engine:
    expected = engine.run(x)[0].tobytes()

    async def on_loop():
        return await engine.run_async(x)

    ways = [
        lambda: engine.run(x),
        lambda: engine.submit(x).result(30),
        lambda: asyncio.run(on_loop()),
        lambda: list(engine.map([x]))[0],
    ]

    def serve(index):
        while not end.is_set():
            try:
                if ways[index]()[0].tobytes() != expected:
                    failures.append("another answer")
            except BaseException as error:
                failures.append(repr(error))
            counts[index] += 1
        masks_at_end.add(tuple(os.sched_getaffinity(0)))

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    print("serving", flush=True)
    for num_changes, line in enumerate(sys.stdin, 1):
        lost = tuple(map(int, line.split()))
        while engine.stats().lost_cpus != lost:
            end.wait(0.01)
        before = list(counts)
        while len(told.buffer) < num_changes or not all(
            now > then for now, then in zip(counts, before)
        ):
            end.wait(0.01)
        masks = allowed_cpus()
        print(masks["ds0-s0"], masks["ds0-s1"], flush=True)
    end.set()
    for thread in threads:
        thread.join()
    print(failures[:3], engine.stats().done >= sum(counts), masks_at_end)
    for record in told.buffer:
        print(record.getMessage())
"""


@needs_two_cpus
@pytest.mark.parametrize(
    ("scheduler", "is_cgroup"),
    [
        ("multi_stream", True),
        pytest.param("elastic", True, marks=pytest.mark.field),
        pytest.param("multi_stream", False, marks=pytest.mark.field),
    ],
)
def test_requests_go_on_while_cpus_are_taken_away_and_come_back(scheduler, is_cgroup):
    with limits(cpuset="0-1") as group:
        serving = group.start(
            [sys.executable, "-c", SERVING, scheduler],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )

        def allow(cpus, lost):
            """Changes the CPUs; what the two workers' masks are after that."""
            if is_cgroup:
                group.set_cpuset(cpus)
            else:
                subprocess.run(
                    ["taskset", "-acp", cpus, str(serving.pid)], check=True, capture_output=True
                )
            serving.stdin.write(f"{lost}\n")
            serving.stdin.flush()
            return serving.stdout.readline().split()

        assert serving.stdout.readline() == "serving\n", serving.stderr.read()
        assert allow("0", lost="1") == ["0", "0"]
        assert allow("0-1", lost="") == ["0", "1"]
        assert allow("1", lost="0") == ["1", "1"]
        assert allow("0-1", lost="") == ["0", "1"]
        out, err = serving.communicate(timeout=30)
    ends, *told = out.splitlines()
    assert ends == "[] True {(0, 1)}", err  # the callers may use both CPUs again
    assert [line.split(":")[0] for line in told] == [
        "this process may not use CPU 1 any more",
        "CPU 1 may be used again, and is",
        "this process may not use CPU 0 any more",
        "CPU 0 may be used again, and is",
    ]


def run_on_two_cpus(program):
    """Runs a program that asks for a change of its cpuset by a line, and goes on after another."""
    with limits(cpuset="0-1") as group:
        process = group.start(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for line in process.stdout:
            group.set_cpuset(line.strip())
            process.stdin.write("\n")
            process.stdin.flush()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err


@needs_two_cpus
def test_an_engine_opens_on_a_context_that_has_lost_a_cpu_and_uses_it_once_it_is_back():
    run_on_two_cpus(
        """
        import os
        import numpy as np
        from deepsched import Context, Engine, check_hardware
        from tests.support import models

        x = [np.ones((1, 256), np.float32)]

        def run_until_lost(engine, lost):
            while engine.stats().lost_cpus != lost:
                engine.run(x)
            assert tuple(check_hardware()["streams"].data["lost_cpus"]) == lost
            assert str(check_hardware()["streams"].status) == ("warn" if lost else "ok")

        def mask_of(thread):
            for entry in os.listdir("/proc/self/task"):
                if open(f"/proc/self/task/{entry}/comm").read().strip() == thread:
                    return os.sched_getaffinity(int(entry))

        def change_to(cpus):
            print(cpus, flush=True)
            input()

        with Context(scheduler="single_stream") as context:
            first = Engine(models.gemm(), context=context)
            run_until_lost(first, ())
            change_to("0")
            run_until_lost(first, (1,))
            second = Engine(models.gemm(seed=1), context=context)
            run_until_lost(second, (1,))
            change_to("0-1")
            run_until_lost(second, ())
            run_until_lost(first, ())
            assert mask_of("ds0-s0-op1") == {1}
        """
    )


@needs_two_cpus
def test_a_thread_that_its_owner_restricted_stays_restricted():
    run_on_two_cpus(
        """
        import os, threading
        import numpy as np
        from deepsched import Engine
        from tests.support import models

        x = [np.ones((1, 256), np.float32)]
        masks = []

        def restricted(engine):
            os.sched_setaffinity(0, {1})
            engine.run(x)
            masks.append(os.sched_getaffinity(0))

        with Engine(models.gemm()) as engine:
            engine.run(x)
            thread = threading.Thread(target=restricted, args=[engine])
            thread.start()
            thread.join()
            masks.append(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {0})
        with Engine(models.gemm()) as engine:
            engine.run(x)
            masks.append(os.sched_getaffinity(0))
            print("0", flush=True)
            input()
            engine.run(x)
            print("0-1", flush=True)
            input()
            engine.run(x)
            masks.append(os.sched_getaffinity(0))
        assert masks == [{1}, {0, 1}, {0}, {0}], masks
        """
    )
