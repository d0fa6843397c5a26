"""Programs on gevent and eventlet, which make greenlets of `threading`'s threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import urllib.request

import pytest

from tests.support import models
from tests.support.processes import finish, run_python, start_python

pytestmark = pytest.mark.field

PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all(); from gevent import sleep, spawn",
    "eventlet": """\
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that it is deprecated
    import eventlet
    eventlet.monkey_patch()
    from eventlet import sleep, spawn""",
}

PROGRAM = """
{first}
{second}
import threading, time
from concurrent.futures import TimeoutError, as_completed, wait
import numpy as np
from deepsched import Context, Engine, Topology
from deepsched.errors import DeadlineExceeded
from tests.support import models
from tests.support.requests import LONG, SQUARE, STEPS

machine = Topology.synthetic(packages=1, cores_per_l3=2)
context = Context(topology=machine, num_streams=2, pin="none")
engine = Engine(models.spin(), None, context=context)
num_turns = 0

def take_turns():
    global num_turns
    while True:
        sleep(0.001)
        num_turns += 1

spawn(take_turns)
{body}
engine.close()
context.close()
print("fine")
"""

RESULTS = """
ended = []
def client():
    for _ in range(50):
        assert len(engine.submit([STEPS, SQUARE]).result(timeout=60)) == 1
    ended.append(num_turns)
for _ in range(8):
    spawn(client)
while len(ended) < 8:
    sleep(0.01)
assert ended[0] > 0
"""
WAITS = """
futures = [engine.submit([STEPS, SQUARE]) for _ in range(20)]
assert not wait(futures, timeout=60).not_done
assert len(list(as_completed(futures, timeout=60))) == 20
called = []
future = engine.submit([STEPS, SQUARE])
future.add_done_callback(called.append)
future.result(timeout=60)
while not called:
    sleep(0.001)
"""
TIMES_OUT = """
future = engine.submit(LONG)
before = num_turns
try:
    future.result(timeout=0.3)
except TimeoutError:
    assert num_turns > before + 5
else:
    raise AssertionError
assert future.cancel()
try:
    engine.submit(LONG, timeout=0.3).result(timeout=60)
except DeadlineExceeded:
    pass
else:
    raise AssertionError
assert len(engine.submit([STEPS, SQUARE]).result(timeout=60)) == 1
"""
OTHER_CALLS = """
assert len(engine.run([STEPS, SQUARE], timeout=60)) == 1
assert len(list(engine.map([[STEPS, SQUARE]] * 20))) == 20
with Engine(models.mlp(), None) as other:
    assert len(other.batched_run([np.zeros((8, 64), np.float32)])[0]) == 8
"""
LOAD = """
from deepsched.benchmark.load import MonotonicClock, closed_loop
times = closed_loop(
    engine.run, [STEPS, SQUARE], callers=2, seconds=0.2, warmup_seconds=0,
    clock=MonotonicClock(), on_tick=lambda ns: None,
)
assert len(times) > 1
"""


@pytest.mark.parametrize(
    "body", [RESULTS, WAITS, TIMES_OUT, OTHER_CALLS], ids=["results", "waits", "late", "others"]
)
@pytest.mark.parametrize("is_first", [True, False], ids=["before the import", "after it"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_futures_come_while_other_greenlets_run(library, is_first, body):
    pytest.importorskip(library)
    parts = [PATCH[library], "import deepsched; deepsched.Engine"]
    first, second = parts if is_first else reversed(parts)
    out, err = finish(start_python(PROGRAM.format(first=first, second=second, body=body)))
    assert out.startswith("fine"), err
    assert "Exception ignored" not in err  # from the interpreter's end


def test_a_load_is_put_on_by_real_threads_under_gevent():
    pytest.importorskip("gevent")
    code = PROGRAM.format(first=PATCH["gevent"], second="", body=LOAD)
    assert run_python(code).startswith("fine")


def test_a_thread_of_gevents_pool_gets_its_result():
    pytest.importorskip("gevent")
    body = """
import gevent
def work():
    return len(engine.submit([STEPS, SQUARE]).result(timeout=60))
pool = gevent.get_hub().threadpool
assert [result.get(timeout=60) for result in [pool.spawn(work) for _ in range(20)]] == [1] * 20
assert len(pool.spawn(engine.run, [STEPS, SQUARE]).get(timeout=60)) == 1
"""
    code = PROGRAM.format(first=PATCH["gevent"], second="", body=body)
    assert run_python(code).startswith("fine")


APPLICATION = """
import json, os
import numpy as np
from deepsched import compile_model

engine = compile_model(os.environ["MODEL"], num_cores=1)

def application(environ, start_response):
    x = np.ones((1, 64), np.float32)
    (y,) = engine.submit([x]).result(timeout=30)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(y.shape).encode()]
"""


def test_gunicorn_serves_from_a_worker_of_gevent(tmp_path):
    pytest.importorskip("gevent")
    pytest.importorskip("gunicorn")
    (tmp_path / "served.py").write_text(textwrap.dedent(APPLICATION))
    server = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "gunicorn", "-k", "gevent", "-w", "1"),
            *("-b", "127.0.0.1:0", "--chdir", tmp_path, "served:application"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "MODEL": models.save(models.mlp(), tmp_path),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        log = []
        for line in server.stderr:
            log.append(line)
            if "Listening at: " in line:
                url = line.split("Listening at: ")[1].split()[0]
            if "Booting worker" in line:
                break
        else:
            raise AssertionError(log)
        for _ in range(20):
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.read().startswith(b"[1, ")
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 0


def test_ctrl_c_reaches_a_greenlet_that_waits_for_a_future():
    pytest.importorskip("gevent")
    body = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
future = engine.submit(LONG)
try:
    print("ready", flush=True)
    future.result()
except KeyboardInterrupt:
    future.cancel()
"""
    process = start_python(PROGRAM.format(first=PATCH["gevent"], second="", body=body))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = finish(process)
    assert out.startswith("fine"), err
