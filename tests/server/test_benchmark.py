"""`deepsched benchmark --server` on a server that runs."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest

from deepsched.benchmark import measure
from deepsched.cli import main
from deepsched.client.engine import open_server
from deepsched.errors import OptionError, ServerError

pytestmark = pytest.mark.server


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    return f"{request.param}://{getattr(server, request.param)}"


def test_closed_and_open_loops_by_both_protocols(url, capsys):
    options = ["benchmark", "--server", url, "-m", "mlp", "-t", "0.3", "-w", "0.1", "-q", "--json"]
    for loop in (["--callers", "3"], ["--rate", "50", "--poisson"]):
        assert main([*options, *loop]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["benchmark_result"]["iterations"] > 0
        assert report["engine"].startswith("<deepsched 0.")


def test_json_tensors_are_understood(server):
    url = f"http://{server.http}"
    with contextlib.closing(open_server(url, "mlp", tensors="json", batch_size=3)) as engine:
        assert measure(engine, seconds=0.1, warmup_seconds=0).iterations > 0


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP8_E5M2", "BOOL", "UINT64", "BYTES"])
def test_tensors_of_every_kind_are_sent(url, datatype):
    with contextlib.closing(open_server(url, f"identity_{datatype}", batch_size=2)) as engine:
        (x,) = engine.generate_random_inputs()
        engine.run([x])
        assert x.shape == (2,)


def test_the_server_s_own_words_are_told(url):
    with pytest.raises(ServerError, match="no model 'nope'"):
        open_server(url, "nope")
    with pytest.raises(OptionError, match="it has 'add_sub', .*'mlp'"):
        open_server(url)
    with (
        contextlib.closing(open_server(url, "mlp")) as engine,
        pytest.raises(ServerError, match=r"input 'x'.*\b65\b"),
    ):
        engine.run([np.zeros((1, 65), np.float32)])
