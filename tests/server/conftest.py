"""A server in a process of its own, with small models."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest
from onnx import TensorProto, helper

from tests.support import models


class Address(NamedTuple):
    """Of a server that runs."""

    http: str
    grpc: str
    pid: int

    @property
    def port(self):
        return int(self.http.rpartition(":")[2])


def add_sub():
    """Triton's example: INT32, [n, 16]; the sum and the difference."""
    return models.make(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [models.tensor(f"INPUT{i}", ["n", 16], TensorProto.INT32) for i in (0, 1)],
        [models.tensor(f"OUTPUT{i}", ["n", 16], TensorProto.INT32) for i in (0, 1)],
    )


def nonzero():
    """Where x is not 0: how much there is depends on the numbers."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    x = models.tensor("x", ["n"])
    return models.make([node], [x], [models.tensor("y", [1, "k"], TensorProto.INT64)])


TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP8_E4M3FN": TensorProto.FLOAT8E4M3FN,
    "FP8_E5M2": TensorProto.FLOAT8E5M2,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
}
"""The protocol's name and ONNX's number."""


def _models(folder):
    made = {
        "add_sub": add_sub(),
        "image": models.identity(("n", 3, 224, 224)),
        "mlp": models.mlp(),
        "nonzero": nonzero(),
        "gather": models.gather(),
        "spin": models.spin(),
        **{
            f"identity_{name}": models.identity(("n",), number, opset=21, ir_version=10)
            for name, number in TYPES.items()
        },
    }
    return [models.save(model, folder, f"{name}.onnx") for name, model in made.items()]


@contextlib.contextmanager
def started(*arguments, **environment):
    """A server's addresses, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deepsched", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        http = process.stdout.readline().strip()
        grpc = process.stdout.readline().strip().removeprefix("grpc://")
        assert http.startswith("http://"), f"it printed {http!r}"
        yield Address(http.removeprefix("http://"), grpc, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stdout.close()
    assert code == 0


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server of small models, for all tests."""
    paths = _models(tmp_path_factory.mktemp("models"))
    with started(*paths, "--port", 0, "--grpc-port", 0) as address:
        yield address
