"""onnx's own backend tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

import deepsched.backend
from tests.support import models


@pytest.mark.field
@pytest.mark.timeout(300)
def test_onnxs_backend_tests_pass_where_plain_onnxruntime_passes():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.onnx_suite"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["behind"] == [], done.stdout
    assert "crashed or hung" not in found["counts"], done.stdout
    # Most have kernels: a suite in which everything fails, on both, proves nothing.
    assert found["counts"]["passed"] > found["counts"]["failed"], done.stdout


def test_run_model_and_run_node():
    x = np.array([-1, 2], np.float32)
    assert deepsched.backend.run_model(models.identity(), [x])[0].tolist() == [-1, 2]
    node = helper.make_node("Relu", ["x"], ["y"])
    (y,) = deepsched.backend.run_node(node, [x])
    assert y.tolist() == [0, 2]


def test_outputs_have_their_names():
    rep = deepsched.backend.prepare(models.identity())
    assert rep.run(np.ones(1, np.float32)).y.tolist() == [1]
    assert rep.run({"x": np.ones(1, np.float32)}).y.tolist() == [1]


def test_only_the_cpu_is_supported():
    assert deepsched.backend.supports_device("CPU")
    assert not deepsched.backend.supports_device("CUDA:0")
    with pytest.raises(onnx.checker.ValidationError):
        deepsched.backend.prepare(onnx.ModelProto())
