"""On a real Ray of this machine: python -m pytest -m ray, with deepsched[ray]."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepsched.errors import DeadlineExceeded, OptionError
from deepsched.machine.leases import holders

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's imports are full of them
    ray = pytest.importorskip("ray", reason="pip install 'deepsched[ray]'")
    from ray import serve

    from deepsched.ray import application, map_batches

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own
]

_WIDTH = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """y = x @ w: (1, 16) to (1, 4)."""
    weights = np.random.default_rng(0).standard_normal((_WIDTH, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("model") / "linear.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return str(path), weights


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """A Ray of this machine alone, whose workers lease cores in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSCHED_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
        # More CPUs than the machine has: Ray counts what readers of data take, which hold no cores.
        ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
        yield
        serve.shutdown()
        ray.shutdown()


def leaseholders():
    return {holder.pid for holder in holders() if holder.is_lease}


def wait_until(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def row(number):
    return np.full((1, _WIDTH), number, np.float32)


# --- Ray Serve --------------------------------------------------------------------------------


def test_replicas_answer_right_on_cores_of_their_own(model):
    path, weights = model
    handle = serve.run(application(path, num_replicas=2), name="two", route_prefix="/two")
    answers = [handle.infer.remote([row(number)]) for number in range(200)]
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer.result()["y"], row(number) @ weights, rtol=1e-5)
    assert len(leaseholders()) == 2
    serve.delete("two")
    wait_until(lambda: not leaseholders(), "the cores are given back")


def test_a_deadline_reaches_the_engine(model):
    handle = serve.run(application(model[0]), name="late", route_prefix="/late")
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        handle.infer.remote([row(1)], timeout=0).result()
    assert isinstance(caught.value.cause, DeadlineExceeded)
    serve.delete("late")


def test_a_replica_that_is_killed_under_load_loses_no_request_and_no_core(model):
    """What was on its way to it is Ray's to repeat; the caller sees an error of Ray's at most."""
    path, weights = model
    handle = serve.run(application(path, num_replicas=2), name="killed", route_prefix="/killed")
    victim = min(leaseholders())

    def ask(number):
        if number == 200:
            os.kill(victim, signal.SIGKILL)
        while True:
            try:
                return number, handle.infer.remote([row(number)]).result(timeout_s=60)["y"]
            except ray.exceptions.RayActorError:
                continue

    with ThreadPoolExecutor(8) as pool:
        answers = dict(pool.map(ask, range(1000)))
    for number, answer in answers.items():
        np.testing.assert_allclose(answer, row(number) @ weights, rtol=1e-5)
    assert len(answers) == 1000
    wait_until(lambda: len(leaseholders() - {victim}) == 2, "the new replica has its core")
    serve.delete("killed")
    wait_until(lambda: not leaseholders(), "the cores are given back")


def test_replicas_come_and_go_under_load(model):
    path, weights = model
    options = {"name": "scaled", "route_prefix": "/scaled"}
    handle = serve.run(application(path, num_replicas=1), **options)
    done = False

    def ask(caller):
        count = 0
        while not done:
            answer = handle.infer.remote([row(count)]).result(timeout_s=60)
            np.testing.assert_allclose(answer["y"], row(count) @ weights, rtol=1e-5)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(ask, caller) for caller in range(4)]
        for num_replicas in (2, 1):
            serve.run(application(path, num_replicas=num_replicas), **options)
            wait_until(lambda n=num_replicas: len(leaseholders()) == n, "so many replicas")
        done = True
        assert all(count.result() for count in counts)
    serve.delete("scaled")


def test_num_cpus_that_is_not_the_lease_is_refused(model):
    with pytest.raises(OptionError, match="num_cpus is 4"):
        application(model[0], deployment={"ray_actor_options": {"num_cpus": 4}})


# --- Ray Data ---------------------------------------------------------------------------------


def numbers(count, blocks=20):
    return ray.data.range(count, override_num_blocks=blocks).map_batches(
        lambda batch: {
            "id": batch["id"],
            "x": np.repeat(batch["id"][:, None], _WIDTH, axis=1).astype(np.float32),
        }
    )


def check(rows, count, weights, column="y"):
    assert sorted(it["id"] for it in rows) == list(range(count))
    for it in rows:
        np.testing.assert_allclose(it[column], row(it["id"])[0] @ weights, rtol=1e-5)


def test_each_row_of_a_data_set_gets_its_outputs(model):
    path, weights = model
    found = map_batches(numbers(1000), path, outputs={"y": "scores"}, workers=2, rows=30)
    check(found.take_all(), 1000, weights, "scores")
    wait_until(lambda: not leaseholders(), "the cores are given back")


def test_a_worker_that_is_killed_loses_and_repeats_no_row(model):
    path, weights = model
    found = map_batches(numbers(4000, 80), path, workers=2, rows=10)
    rows = iter(found.iter_rows())
    first = [next(rows) for _ in range(10)]
    wait_until(leaseholders, "a worker has its cores")
    os.kill(min(leaseholders()), signal.SIGKILL)
    check([*first, *rows], 4000, weights)


def test_a_column_that_is_missing_is_named(model):
    with pytest.raises(ray.exceptions.RayTaskError, match="no column 'x' in the data"):
        map_batches(ray.data.range(10), model[0]).take_all()


# --- Others whose workers are processes -------------------------------------------------------


@pytest.mark.parametrize("module", ["dask", "pyspark"])
def test_the_example_scores_rows_in_processes_that_lease_cores(module):
    pytest.importorskip(module)
    if module == "pyspark" and not shutil.which("java"):
        pytest.skip("Spark needs Java")
    example = f"examples.{module.removeprefix('py')}_predict"
    done = subprocess.run(
        [sys.executable, "-m", example, "--rows", "8"], capture_output=True, text=True, check=True
    )
    assert "8 rows of 1000 outputs" in done.stdout
