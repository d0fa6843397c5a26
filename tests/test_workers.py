"""The workers of real programs: equal shares, no core twice, and a restarted one gets its share.

Run with -m workers, in an environment with the extra `workers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from deepsched import Topology
from deepsched.machine.leases import holders
from examples.workers import pool

ROOT = Path(__file__).parent.parent
CORES = Topology.detect().cores

pytestmark = [
    pytest.mark.workers,
    pytest.mark.skipif(len(CORES) < 2, reason="needs two cores"),
]


@pytest.fixture(autouse=True)
def lease_dir(tmp_path, monkeypatch):
    """A file that no other test has locks on."""
    monkeypatch.setenv("DEEPSCHED_LEASE_DIR", str(tmp_path))
    monkeypatch.setattr("deepsched.machine.leases._books", {})


@contextlib.contextmanager
def running(*command, **env):
    """A program; it and all that it has started is ended with the block."""
    with open(os.devnull) as null:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=null,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0].decode())
        raise
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition, seconds=60):
    """The first true value that it returns."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
    return found


def leases(num_workers):
    """Once there are as many: the CPUs by process. No two share any: the kernel's locks say so."""
    found = {it.pid: it.cpus for it in holders() if it.is_lease}
    assert not [it for it in holders() if not it.is_lease]
    return found if len(found) == num_workers else None


def are_equal_shares(held, num_workers):
    """Whether each has as many whole cores, and none is another's."""
    share = len(CORES) // num_workers
    whole = {core.cpus for core in CORES}
    cores = [[core for core in whole if set(core) <= set(cpus)] for cpus in held.values()]
    cpus = [cpu for cpus in held.values() for cpu in cpus]
    return all(len(it) == share for it in cores) and len(cpus) == len(set(cpus))


def kill_one(held):
    """Kills a worker; returns once another has its very cores."""
    pid, cpus = next(iter(held.items()))
    os.kill(pid, signal.SIGKILL)

    def replaced():
        now = leases(len(held))
        return now and pid not in now and cpus in now.values() and now

    return wait_for(replaced)


def ask(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_workers_of_a_server_have_equal_shares_and_a_restarted_one_gets_its_share_back(server):
    pytest.importorskip(server)
    port = free_port()
    command = {
        "gunicorn": ["gunicorn", "-b", f"127.0.0.1:{port}", "examples.workers.gunicorn_app:app"],
        "uvicorn": ["uvicorn", "--port", str(port), "examples.workers.uvicorn_app:app"],
    }[server]
    with running(*command, "--workers", "2"):
        held = wait_for(lambda: leases(2))
        assert are_equal_shares(held, 2)
        answers = [wait_for(lambda: _ask_once(port)) for _ in range(4)]
        for answer in answers:
            assert tuple(answer["cpus"]) == held[answer["pid"]]
        assert are_equal_shares(kill_one(held), 2)
        assert ask(port)["shapes"] == answers[0]["shapes"]


def _ask_once(port):
    try:
        return ask(port)
    except OSError:  # not up yet
        return None


def test_workers_that_gunicorns_file_of_settings_asks_for(tmp_path):
    pytest.importorskip("gunicorn")
    settings = tmp_path / "settings.py"
    settings.write_text(f"bind = '127.0.0.1:{free_port()}'\nworkers = 2\n")
    with running("gunicorn", "-c", str(settings), "examples.workers.gunicorn_app:app") as server:
        held = wait_for(lambda: leases(2))
        os.kill(server.pid, signal.SIGHUP)  # new workers come before the old ones go

        def reloaded():
            now = leases(2)
            return now and not set(now) & set(held) and now

        assert are_equal_shares(wait_for(reloaded), 2)


def test_processes_of_a_celery_worker_have_equal_shares(tmp_path):
    pytest.importorskip("celery")
    module, folder = "examples.workers.celery_app", str(tmp_path / "broker")
    with running(
        "celery", "-A", module, "worker", "--concurrency", "2", "--loglevel", "info", BROKER=folder
    ):
        held = wait_for(lambda: leases(2))
        assert are_equal_shares(held, 2)
        program = (
            f"from {module} import infer\n"
            "import json\n"
            "print(json.dumps([it.get(timeout=60) for it in [infer.delay() for _ in range(8)]]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "BROKER": folder},
            capture_output=True,
            text=True,
        )
        answers = json.loads(done.stdout or done.stderr)
        assert all(tuple(it["cpus"]) == held[it["pid"]] for it in answers)
        assert are_equal_shares(kill_one(held), 2)


def test_processes_of_a_pool_have_equal_shares():
    answers = pool.main()
    held = {it["pid"]: tuple(it["cpus"]) for it in answers}
    assert len(answers) == 64 and are_equal_shares(held, 2)
    assert holders() == []


def run_program(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_pool_that_say_nothing_have_a_core_each(method):
    program = f"""
import multiprocessing, os
from deepsched import Context

def lease(_):
    global context
    context = globals().get("context") or Context()
    barrier.wait(60)
    return context.lease.cpus

def keep(it):
    global barrier
    barrier = it

if __name__ == "__main__":
    context_of = multiprocessing.get_context({method!r})
    with context_of.Pool(2, keep, (context_of.Barrier(2),)) as pool:
        print(sorted(pool.map(lease, range(2), chunksize=1)))
"""
    path = Path(os.environ["DEEPSCHED_LEASE_DIR"]) / "program.py"
    path.write_text(program)
    done = run_program(path)
    assert done.stdout.strip() == str(sorted(core.cpus for core in CORES[:2])), done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_engine_that_a_pools_processes_are_given_leases_cores_there(tmp_path, method):
    program = f"""
import concurrent.futures, multiprocessing
from deepsched import Engine
from tests.support import models

def keep(it):
    global engine
    engine = it

def leased():
    return engine.context.lease.cpus

if __name__ == "__main__":
    with (
        Engine(models.mlp(), num_cores=1) as own,
        concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context({method!r}), initializer=keep, initargs=(own,)
        ) as pool,
    ):
        theirs = pool.submit(leased).result()
        mine = [cpu for stream in own.context.streams for core in stream.cores for cpu in core.cpus]
        print(bool(theirs) and not set(theirs) & set(mine))
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = run_program(path)
    assert done.stdout.strip() == "True", done.stderr
