"""Deadlines, priorities, clients that leave, and what bounds a request: from wire to core."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zlib

import grpc
import numpy as np
import psutil
import pytest

from deepsched.server.grpc_messages import SERVICE, message_class
from tests.support import models, serving

pytestmark = pytest.mark.server

LONG = 10_000_000
"""Steps of `spin` that take minutes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One stream, room for two to wait, and narrow limits."""
    folder = tmp_path_factory.mktemp("models")
    spin = models.save(models.spin(rows=64), folder, "spin.onnx")
    image = models.save(models.identity(("n",)), folder, "echo.onnx")
    with serving.serving(
        *(spin, image, "--num-streams", 1, "--queue-capacity", 2, "--lame-duck", 0),
        *("--header-timeout", 1, "--body-timeout", 1, "--max-body-bytes", 2_000_000),
        *("--max-connections", 40, "--keep-alive", 2),
    ) as server:
        host, port = server.url.removeprefix("http://").split(":")
        server.address = host, int(port)
        yield server


def _spin(steps, **parameters):
    x = {"name": "x", "datatype": "FP32", "shape": [64, 64], "data": [0] * 4096}
    count = {"name": "steps", "datatype": "INT64", "shape": [], "data": [steps]}
    return {"inputs": [count, x], "parameters": parameters}


def _post(server, steps, headers=(), timeout=60, **parameters):
    url = f"{server.url}/v2/models/spin/infer"
    return serving.HTTP.post(
        url, json=_spin(steps, **parameters), headers=dict(headers), timeout=timeout
    )


def _raw(server, content, path="/v2/models/spin/infer", **headers):
    """A connection over which a request has been sent."""
    connection = socket.create_connection(server.address, 30)
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return connection


def _statistics(server):
    text = serving.HTTP.get(f"{server.url}/metrics").text
    found = {}
    for line in text.splitlines():
        if line.startswith("deepsched_requests_total{") and 'model="spin"' in line:
            outcome = line.partition('outcome="')[2].partition('"')[0]
            found[outcome] = float(line.rpartition(" ")[2])
    return found


@contextlib.contextmanager
def _busy(server, num_waiting=0):
    """The one stream runs for long, and so many wait for it."""
    connections = [_raw(server, json.dumps(_spin(LONG)).encode())]
    serving.eventually(lambda: _is_running(server))
    for number in range(num_waiting):
        connections.append(_raw(server, json.dumps(_spin(LONG)).encode()))
        serving.eventually(lambda number=number: _depth(server) == number + 1)
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()
        serving.eventually(lambda: _depth(server) == 0)
        assert _post(server, 1).status_code == 200


def _depth(server):
    return _gauge(server, "deepsched_queue_depth{")


def _gauge(server, name):
    lines = serving.HTTP.get(f"{server.url}/metrics").text.splitlines()
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
    assert found, f"no {name} in /metrics"
    return sum(found)


def _is_running(server):
    return _gauge(server, "deepsched_requests_under_way{") == 1 and _depth(server) == 0


class _Rpc:
    """ModelInfer of spin."""

    def __init__(self, server):
        self.channel = grpc.insecure_channel(server.grpc)
        self.call = self.channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.channel.close()

    @staticmethod
    def request(steps, **parameters):
        request = message_class("ModelInferRequest")(model_name="spin")
        request.inputs.add(name="steps", datatype="INT64", shape=[])
        request.inputs.add(name="x", datatype="FP32", shape=[64, 64])
        request.raw_input_contents.append(np.int64(steps).tobytes())
        request.raw_input_contents.append(np.zeros((64, 64), np.float32).tobytes())
        for name, value in parameters.items():
            request.parameters[name].int64_param = value
        return request.SerializeToString()


def test_a_client_that_leaves_ends_its_running_request(server):
    before = _statistics(server).get("cancelled", 0)
    with _busy(server) as (connection,):
        connection.close()
        assert _post(server, 1).status_code == 200
    assert _statistics(server)["cancelled"] == before + 1


def test_a_client_that_leaves_ends_its_waiting_request(server):
    before = _statistics(server).get("cancelled", 0)
    with _busy(server, num_waiting=1) as connections:
        connections[1].close()
        serving.eventually(lambda: _statistics(server).get("cancelled", 0) == before + 1)
        assert _gauge(server, "deepsched_requests_under_way{") == 1  # the one that runs


def test_a_call_that_is_cancelled_ends_its_request(server):
    with _Rpc(server) as rpc:
        call = rpc.call.future(rpc.request(LONG))
        serving.eventually(lambda: _is_running(server))
        call.cancel()
        assert _post(server, 1).status_code == 200


def test_the_deadline_of_a_call_ends_its_request(server):
    with _Rpc(server) as rpc:
        with pytest.raises(grpc.RpcError) as caught:
            rpc.call(rpc.request(LONG), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert _post(server, 1).status_code == 200


def test_the_timeout_of_a_request_ends_it(server):
    with _Rpc(server) as rpc, pytest.raises(grpc.RpcError) as caught:
        rpc.call(rpc.request(LONG, timeout=200_000))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "timeout of 0.2 s" in caught.value.details()
    url = f"{server.url}/v2/models/spin/infer"
    answer = serving.HTTP.post(url, json=_spin(LONG, timeout=200_000), timeout=30)
    assert answer.status_code == 504
    assert "timeout of 0.2 s" in answer.json()["error"]
    answer = _post(server, LONG, {"Inference-Timeout-Ms": "150"})
    assert answer.status_code == 504
    assert "timeout of 0.15 s" in answer.json()["error"]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(server, value):
    answer = _post(server, 1, {"Inference-Timeout-Ms": value})
    assert answer.status_code == 400
    assert "Inference-Timeout-Ms" in answer.json()["error"]


def test_a_full_queue_refuses_at_once(server):
    with _busy(server, num_waiting=2), _Rpc(server) as rpc:
        answer = _post(server, 1)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "queue_capacity" in answer.json()["error"]
        with pytest.raises(grpc.RpcError) as caught:
            rpc.call(rpc.request(1))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_priority_of_a_request_is_the_engines(server):
    order = []

    def ask(priority):
        assert _post(server, 20_000, priority=priority).status_code == 200
        order.append(priority)

    with _busy(server) as (connection,):
        threads = []
        for place, priority in enumerate((3, 1)):
            threads.append(threading.Thread(target=ask, args=(priority,)))
            threads[-1].start()
            serving.eventually(lambda place=place: _depth(server) == place + 1)
        connection.close()
        for thread in threads:
            thread.join(60)
    assert order == [1, 3]


def _read(connection):
    """All that comes until the server closes, or nothing more comes for 5 s."""
    connection.settimeout(5)
    read = b""
    with contextlib.suppress(TimeoutError):
        while chunk := connection.recv(65536):
            read += chunk
    return read


def test_a_body_may_have_so_many_bytes(server):
    with socket.create_connection(server.address) as connection:
        connection.sendall(
            b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        )
        assert b" 413 " in _read(connection).partition(b"\r\n")[0]  # none of it was sent
    with socket.create_connection(server.address) as connection:
        connection.sendall(
            b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(b"%x\r\n%b\r\n" % (65536, b" " * 65536))
        assert b" 413 " in _read(connection).partition(b"\r\n")[0]


def test_a_body_may_not_be_more_when_decompressed(server):
    bomb = zlib.compress(b" " * 50_000_000)
    with _raw(server, bomb, Content_Encoding="deflate", Connection="close") as connection:
        answer = _read(connection)
    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert b"decompressed" in answer


@pytest.mark.parametrize("name", ["ModelInfer", "RepositoryIndex"])
def test_a_message_may_not_be_more_when_decompressed(server, name):
    with _Rpc(server) as rpc:
        call = rpc.channel.unary_unary(f"/{SERVICE}/{name}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b" " * 50_000_000, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more than 2000000 bytes when decompressed" in caught.value.details()


def test_what_is_no_inference_may_have_less(server):
    url = f"{server.url}/v2/repository/index"
    answer = serving.HTTP.post(url, content=b" " * (2**20 + 1))
    assert answer.status_code == 413
    assert "more than 1048576 bytes" in answer.json()["error"]


def test_headers_that_do_not_come_end_their_connection(server):
    with socket.create_connection(server.address) as silent:
        with socket.create_connection(server.address) as slow:
            slow.sendall(b"POST /v2/models/echo/infer HTTP/1.1\r\nHos")
            began = time.monotonic()
            assert b" 408 " in _read(slow).partition(b"\r\n")[0]
            assert time.monotonic() - began < 4.5
        assert _read(silent) == b""  # it said nothing, and is told nothing


def test_a_connection_of_grpc_that_says_nothing_is_closed(server):
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), 10) as silent:
        while silent.recv(4096):  # its settings, and the reason; times out where it stays open
            pass


def test_a_body_that_does_not_come_ends_its_connection(server):
    with socket.create_connection(server.address) as slow:
        slow.sendall(
            b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in _read(slow).partition(b"\r\n")[0]


def test_connections_are_counted(server):
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            connection = socket.create_connection(server.address)
            last = stack.enter_context(contextlib.closing(connection))
        assert b" 503 " in _read(last).partition(b"\r\n")[0]
    serving.eventually(lambda: serving.HTTP.get(f"{server.url}/v2/health/live").status_code == 200)


def _asking_for_much(server):
    """A connection whose answer is more than its buffers take, and that does not read."""
    data = np.zeros(450_000, np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [450_000]}
    text = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address)
    connection.sendall(
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        b"Inference-Header-Content-Length: %d\r\n\r\n"
        % (len(text) + len(data), len(text))
        + text
        + data
    )
    return connection


def test_who_does_not_read_holds_up_nobody(server):
    sleepers = [_asking_for_much(server) for _ in range(10)]
    try:
        serving.eventually(lambda: _post(server, 1, timeout=10).status_code == 200)
        for _ in range(10):
            assert _post(server, 1, timeout=10).status_code == 200
    finally:
        for sleeper in sleepers:
            sleeper.close()


def test_who_never_reads_is_cut_off(server):
    with _asking_for_much(server) as connection:
        here = connection.getsockname()
        process = psutil.Process(server.process.pid)

        def is_open():
            return any(it.raddr == here for it in process.net_connections("tcp"))

        assert is_open()
        serving.eventually(lambda: not is_open())


def test_requests_of_one_connection_are_answered_in_their_order(server):
    requests = b""
    for number in range(5):
        steps = 2000 if number == 0 else 1
        content = json.dumps({**_spin(steps), "id": f"r{number}"}).encode()
        requests += (
            b"POST /v2/models/spin/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % len(content)
        ) + content
        requests += b"GET /v2/models/spin/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    requests += b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(server.address) as connection:
        connection.sendall(requests)
        answers = _read(connection)
    places = [answers.index(f'"id":"r{number}"'.encode()) for number in range(5)]
    assert places == sorted(places)
    assert answers.count(b"HTTP/1.1 200") == 11


def test_connections_of_grpc_are_bounded_and_a_closed_one_makes_room(server):
    host, port = server.grpc.split(":")

    def connect():
        """A connection that the server keeps; None: it has closed it."""
        connection = socket.create_connection((host, int(port)), 30)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        with contextlib.suppress(ConnectionError):
            if connection.recv(1):  # its settings
                return connection
        connection.close()
        return None

    def is_refused():
        with grpc.insecure_channel(server.grpc) as channel:
            try:
                channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=10)
            except grpc.RpcError as error:
                return error.code() == grpc.StatusCode.UNAVAILABLE
        return False

    kept = []
    while (connection := connect()) is not None:
        kept.append(connection)
    try:
        assert 30 <= len(kept) <= 40  # others of this server's tests may be open still
        assert is_refused()
    finally:
        for connection in kept:
            connection.close()
    serving.eventually(lambda: not is_refused())
