"""`deepsched benchmark --server`: a load on a server that speaks the Open Inference Protocol v2.

Here a stand-in made of http.server; tests/server has the same on real ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from deepsched.benchmark import measure
from deepsched.cli import main
from deepsched.client.engine import open_server
from deepsched.client.rest import read_answer
from deepsched.errors import OptionError, ServerError

MODEL = {
    "name": "adder",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "word", "datatype": "BYTES", "shape": [1]},
    ],
}


class Handler(BaseHTTPRequestHandler):
    """Answers as server.answers says: path -> (status, JSON)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply()

    def do_POST(self):
        self.reply()

    def reply(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, self.headers, body))
        self.server.peers[self.client_address] += 1
        status, answer = self.server.answers.get(self.path, (404, {"error": "no such path"}))
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        if self.server.closes:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *ignored):
        pass


@contextlib.contextmanager
def stand_in(closes=False, **changes):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.peers, server.closes = [], Counter(), closes
    server.answers = {
        "/v2": (200, {"name": "stand-in", "version": "1.0"}),
        "/v2/repository/index": (200, [{"name": "adder", "version": "1", "state": "READY"}]),
        "/v2/models/adder": (200, MODEL),
        "/v2/models/adder/infer": (200, {"outputs": []}),
        **changes,
    }
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def infers(server):
    return [each for each in server.seen if each[0].endswith("/infer")]


def test_a_load_on_a_server_has_the_report_of_any_other(capsys):
    with stand_in() as server:
        options = [
            "--server",
            server.url,
            "-m",
            "adder",
            "--callers",
            "3",
            "-t",
            "0.2",
            "-w",
            "0.1",
        ]
        assert main(["benchmark", *options, "-q", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert main(["benchmark", *options, "-q", "--rate", "100", "--poisson"]) == 0
        text = capsys.readouterr().out
    result = report["benchmark_result"]
    assert result["callers"] == 3
    assert 0 < result["iterations"] <= len(infers(server))
    assert "stand-in 1.0 at http://127.0.0.1" in report["engine"]
    assert report["num_cores"] is report["num_streams"] is None
    assert "Latency p99" in text and "Cores" not in text and "Client's CPU Time" in text


def test_binary_tensors_follow_the_json_that_gives_their_sizes():
    with stand_in() as server, contextlib.closing(open_server(server.url, batch_size=2)) as engine:
        inputs = engine.generate_random_inputs()
    _, headers, body = infers(server)[-1]
    length = int(headers["Inference-Header-Content-Length"])
    shell, raw = json.loads(body[:length]), body[length:]
    x, word = shell["inputs"]
    assert (x["shape"], x["datatype"], word["shape"]) == ([2, 4], "FP32", [1])
    size = x["parameters"]["binary_data_size"]
    assert raw[:size] == inputs[0].tobytes()
    assert raw[size:] == b"\x01\0\0\0a"  # BYTES: a length of four bytes before each
    assert len(raw) == size + word["parameters"]["binary_data_size"]


def test_json_tensors_are_lists():
    with stand_in() as server:
        with contextlib.closing(open_server(server.url, "adder", tensors="json")) as engine:
            inputs = engine.generate_random_inputs()
        x, word = json.loads(infers(server)[-1][2])["inputs"]
    assert np.array_equal(np.array(x["data"], np.float32), inputs[0].ravel())
    assert word["data"] == ["a"]


def test_each_caller_keeps_one_connection():
    with stand_in() as server, contextlib.closing(open_server(server.url)) as engine:
        measure(engine, callers=2, seconds=0.1, warmup_seconds=0)
    assert len(server.peers) == 3  # and that of the first request


def test_a_server_that_closes_connections_is_connected_to_anew():
    with (
        stand_in(closes=True) as server,
        contextlib.closing(open_server(server.url)) as engine,
    ):
        result = measure(engine, callers=2, seconds=0.1, warmup_seconds=0)
    assert result.iterations > 0


def test_errors_tell_what_the_server_said():
    refused = {"/v2/models/adder/infer": (503, {"error": "the queue is full"})}
    with (
        stand_in(**refused) as server,
        pytest.raises(ServerError, match=r"/infer: the server answered 503: the queue is full"),
    ):
        open_server(server.url)
    with stand_in() as server:
        with pytest.raises(ServerError, match=r"/v2/models/other: the server answered 404"):
            open_server(server.url, "other")
        server.answers["/v2/repository/index"] = (200, [{"name": "a"}, {"name": "b"}])
        with pytest.raises(OptionError, match=r"model must be the name .* it has 'a', 'b'"):
            open_server(server.url)
    with pytest.raises(ServerError, match=r"cannot connect to http://127.*is the server running"):
        open_server(server.url)


def test_a_server_that_fails_under_load_ends_the_measurement():
    with stand_in() as server, contextlib.closing(open_server(server.url)) as engine:
        server.answers["/v2/models/adder/infer"] = (500, {"error": "a kernel failed"})
        with pytest.raises(ServerError, match="500: a kernel failed"):
            measure(engine, callers=2, seconds=0.1, warmup_seconds=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--server", "ftp://localhost"], "--server must look like http://"),
        (["--server", "http://localhost:port"], "--server must look like http://"),
        (["--server", "grpc://localhost", "--tensors", "json"], "--tensors must be 'binary'"),
        (
            ["--server", "http://localhost", "model.onnx", "--num-cores", "1"],
            "MODEL, --num-cores: ",
        ),
        (["--server", "http://localhost", "-e", "onnxruntime"], "--engine: with --server"),
        (["--server", "http://localhost", "--sweep", "num_streams=1,2"], "--sweep num_streams: "),
        (["-m", "resnet"], "--model and --model-version name a model of --server"),
    ],
)
def test_options_that_do_not_fit_a_server_are_refused(options, complaint, capsys):
    assert main(["benchmark", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_fixed_shape_takes_no_batch_size():
    fixed = {**MODEL, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}
    with (
        stand_in(**{"/v2/models/adder": (200, fixed)}) as server,
        pytest.raises(OptionError, match=r"batch_size must be 1 for 'adder'.*x: FP32 \[1, 4\]"),
    ):
        open_server(server.url, batch_size=4)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            b"abc",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\nignored", b""),
    ],
)
def test_answers_are_read_in_every_framing(text, body):
    assert read_answer(io.BufferedReader(io.BytesIO(text))).body == body


@pytest.mark.parametrize(
    "text",
    [b"", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
)
def test_an_answer_that_breaks_off_is_a_lost_connection(text):
    with pytest.raises(ConnectionError):
        read_answer(io.BufferedReader(io.BytesIO(text)))


def test_what_is_no_http_is_said():
    with pytest.raises(ServerError, match="expected an answer of HTTP/1.1, got b'SSH-2.0"):
        read_answer(io.BufferedReader(io.BytesIO(b"SSH-2.0-OpenSSH\r\n")))
