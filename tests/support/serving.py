"""`deepsched serve` as a process, and small clients of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import onnx

from tests.support import models

HTTP = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0))
"""A connection for each request, without what httpx itself loads for each of its own."""


def plus(number, batch="batch"):
    """y = x + number, for x of [batch, 4]: which model answered is in the answer."""
    value = onnx.numpy_helper.from_array(np.float32([number]), "k")
    return models.make(
        [onnx.helper.make_node("Add", ["x", "k"], ["y"])],
        [models.tensor("x", [batch, 4])],
        [models.tensor("y", [batch, 4])],
        [value],
    )


def slow_plus(number):
    """The same for x of [64, 64], after a loop of `steps` small matrix products."""
    model = models.spin()
    graph = model.graph
    graph.node[-1].output[0] = "h"
    graph.node.append(onnx.helper.make_node("Add", ["h", "k"], ["y"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32([number]), "k"))
    return model


def save(model, folder, name="model.onnx"):
    """Puts a model there by one rename; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    onnx.save(model, temporary)
    os.replace(temporary, folder / name)
    return folder / name


def body(values):
    """An inference of `plus` as JSON."""
    x = np.asarray(values, np.float32).reshape(-1, 4)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor]}


class ServerProcess:
    """A server on free ports; its addresses, and its log in `lines`."""

    def __init__(self, *arguments, env=None, scheme="http", before=()):
        options = ("--port", "0", "--grpc-port", "0")
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "deepsched", "serve", *map(str, arguments), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = f"{scheme}://" + self._address("http")
        self.grpc = self._address("grpc")

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip())

    def _address(self, scheme):
        found = []
        eventually(
            lambda: (
                found.extend(re.findall(rf"listening at .*\b{scheme}://([^\s,]+)", self.output))
                or found
                or self.process.poll() is not None
            )
        )
        assert found, self.output
        return found[0]

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_ready(self, client=httpx):
        eventually(lambda: client.get(f"{self.url}/v2/health/ready").status_code == 200)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=60):
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code


@contextlib.contextmanager
def serving(*arguments, ready=True, **options):
    """A server, which is killed at the end if it has not ended by itself."""
    server = ServerProcess(*arguments, **options)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.process.kill()
        server.wait()


def eventually(condition, seconds=60):
    """Looks until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.02)
