"""Programs of others that need an environment of their own, against a server of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.server

KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, grpc = sys.argv[1:]
url = f"http://{http}"
x = np.arange(32, dtype=np.int32).reshape(2, 16)

def request(is_binary):
    inputs = [InferInput(name, [2, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor in inputs:
        tensor.set_data_from_numpy(x, binary_data=is_binary)
    return InferRequest(model_name="add_sub", infer_inputs=inputs)

async def main():
    second = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await second.is_server_live(url) and await second.is_server_ready(url)
    assert await second.is_model_ready(url, "add_sub")
    rpc = InferenceGRPCClient(url=grpc)
    assert await rpc.is_server_ready() and await rpc.is_model_ready("add_sub")
    for is_binary in (False, True):
        for answer in (
            await second.infer(url, request(is_binary), model_name="add_sub"),
            await rpc.infer(request(is_binary)),
        ):
            named = {output.name: output.as_numpy() for output in answer.outputs}
            assert (named["OUTPUT0"] == 2 * x).all() and (named["OUTPUT1"] == 0).all()
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await first.is_model_ready(url, "add_sub")
    answer = await first.infer(url, {"instances": [0.5, 2]}, model_name="identity_FP32")
    assert answer == {"predictions": [0.5, 2]}, answer
    print("answered")

asyncio.run(main())
"""


def test_the_clients_of_kserve_are_answered(server):
    """KSERVE_PYTHON: an interpreter whose environment has kserve, which pins what others need."""
    python = os.environ.get("KSERVE_PYTHON") or (sys.executable if find_spec("kserve") else None)
    if python is None:
        pytest.skip("needs kserve, in an environment that KSERVE_PYTHON names")
    process = subprocess.run(
        [python, "-c", KSERVE, server.http, server.grpc],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip().endswith("answered")


def test_requests_made_up_from_the_openapi_page_meet_no_error_of_the_server(server, tmp_path):
    """All checks of schemathesis but one: it takes every request that is of the page's form for
    one that is to be done, whatever the models take."""
    pytest.importorskip("schemathesis")
    process = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            *("--exclude-checks", "positive_data_acceptance"),
            *("--exclude-path-regex", "/(un)?load$"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "5", "--seed", "1", "--no-color"),
            f"http://{server.http}/openapi.json",
        ],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,  # where it keeps what it has found
    )
    assert process.returncode == 0, process.stdout[-6000:]
