"""A Ray of this machine, and a small model."""

from __future__ import annotations

import gc
import socket
import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.ray_cluster import WIDTH, leaseholders, wait_until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's imports are full of them
    import ray
    from ray import serve


@pytest.fixture(scope="session")
def linear(tmp_path_factory):
    """The path of y = x @ w, (n, 16) to (n, 4), and w."""
    weights = np.random.default_rng(0).standard_normal((WIDTH, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("model") / "linear.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return str(path), weights


@pytest.fixture(scope="session", autouse=True)
def cluster(tmp_path_factory):
    """A Ray of this machine alone, whose workers lease cores in a folder of their own; the URL of
    its HTTP proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSCHED_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
        patch.setattr("deepsched.machine.leases._books", {})
        # More CPUs than the machine has: Ray counts what readers of data take, which hold no cores.
        ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(autouse=True)
def _cores_are_free(cluster):
    """An error's traceback keeps Ray Data's workers, and pytest keeps that until its test ends."""
    gc.collect()
    wait_until(lambda: not leaseholders(), "the cores of the test before are free")
