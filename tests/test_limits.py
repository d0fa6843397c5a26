"""Real limits, as containers set them: what the process sees, and what it does under them."""

from __future__ import annotations

import json
import os
import sys
import textwrap

from tests.support.cgroups import limits


def run_in(group, code, **environment):
    """What the Python code prints as JSON, run inside of the group."""
    ran = group.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_topology_is_cut_to_a_real_cpuset_and_quota():
    cpu = min(os.sched_getaffinity(0))
    with limits(cpus=(50_000, 100_000), cpuset=str(cpu)) as group:
        seen = run_in(
            group,
            """
            import json
            from deepsched import Topology
            topology = Topology.detect()
            print(json.dumps([list(topology.cpus), topology.cpu_quota]))
            """,
        )
    assert seen == [[cpu], 0.5]


def test_doctor_reports_a_real_memory_limit():
    with limits(memory=256 << 20) as group:
        seen = run_in(
            group,
            """
            import json
            from deepsched.doctor import check_hardware
            print(json.dumps(check_hardware()["memory"].data["limit_bytes"]))
            """,
        )
    assert seen == 256 << 20


def test_threads_are_limited_by_a_real_pids_limit():
    with limits(pids=4) as group:
        num_started = run_in(
            group,
            """
            import json, threading
            end, num_started = threading.Event(), 0
            try:
                for num_started in range(10):
                    threading.Thread(target=end.wait).start()
            except RuntimeError:
                print(json.dumps(num_started))
            end.set()
            """,
        )
    assert num_started == 3  # and the main thread


def test_throttling_by_a_real_quota_is_reported():
    with limits(cpus=(30_000, 100_000)) as group:
        seen = run_in(
            group,
            """
            import json
            from deepsched.doctor import check_hardware
            while not check_hardware()["throttling"].data.get("num_throttled"):
                pass
            print(json.dumps(str(check_hardware()["throttling"].status)))
            """,
        )
    assert seen == "warn"
