"""SIGTERM: nothing that was accepted is lost, whoever holds the connection."""

from __future__ import annotations

import asyncio
import collections
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import httpx
import numpy as np
import psutil
import pytest

from deepsched.server.grpc_messages import message_class
from tests.support.serving import body, eventually, plus, save, serving, slow_plus

pytestmark = pytest.mark.server

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
Request, Response = message_class("ModelInferRequest"), message_class("ModelInferResponse")
StreamResponse = message_class("ModelStreamInferResponse")


def message(values, steps=None):
    """A ModelInferRequest of `plus`, or with `steps` of `slow_plus`."""
    x = np.asarray(values, np.float32)
    x = x.reshape(-1, 4) if steps is None else x
    request = Request(model_name="m", id="1")
    if steps is not None:
        request.inputs.add(name="steps", datatype="INT64", shape=[])
        request.raw_input_contents.append(np.int64(steps).tobytes())
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    return request.SerializeToString()


def first_of(reply):
    return np.frombuffer(Response.FromString(reply).raw_output_contents[0], np.float32)[0]


@pytest.fixture
def model(tmp_path):
    return save(plus(1), tmp_path, "m.onnx")


def loaded_until_closed(server):
    """Puts load on the server, and stops it under that load: what became of each request."""
    outcomes = collections.Counter()

    async def stop():
        while not all(outcomes[kind] >= 100 for kind in ("kept", "answered", "grpc")):
            await asyncio.sleep(0.01)
        server.stop()

    async def over_http(number, is_kept):
        async with httpx.AsyncClient(verify=False) as client:
            kept = client if is_kept else None
            for value in range(10**9):
                want = number * 1000 + value % 1000
                async with contextless(kept) as using:
                    try:
                        answer = await using.post(
                            f"{server.url}/v2/models/m/infer", json=body([want] * 4)
                        )
                    except httpx.ConnectError:
                        outcomes["refused"] += 1
                        return
                    except httpx.HTTPError as error:
                        outcomes[f"http: {error!r}"] += 1
                        return
                if answer.status_code != 200:
                    outcomes[f"http: {answer.status_code} {answer.text}"] += 1
                elif answer.json()["outputs"][0]["data"] != [want + 1] * 4:
                    outcomes["wrong"] += 1
                else:
                    outcomes["kept" if is_kept else "answered"] += 1

    async def over_grpc(number):
        async with grpc.aio.insecure_channel(server.grpc, options=[("number", number)]) as channel:
            call = channel.unary_unary(INFER)
            for value in range(10**9):
                want = number * 1000 + value % 1000
                try:
                    reply = await call(message([want] * 4))
                except grpc.aio.AioRpcError as error:
                    is_refused = error.code() == grpc.StatusCode.UNAVAILABLE
                    outcomes["refused" if is_refused else f"grpc: {error.code()}"] += 1
                    return
                outcomes["grpc" if first_of(reply) == want + 1 else "wrong"] += 1

    async def main():
        await asyncio.gather(
            stop(),
            *(over_http(number, True) for number in range(8)),
            *(over_http(number, False) for number in range(8)),
            *(over_grpc(number) for number in range(8)),
        )

    asyncio.run(main())
    return outcomes


class contextless:  # noqa: N801
    """A client that is kept open, or a new one."""

    def __init__(self, kept):
        self.kept = kept

    async def __aenter__(self):
        self.client = self.kept or httpx.AsyncClient(verify=False)
        return self.client

    async def __aexit__(self, *_):
        if self.kept is None:
            await self.client.aclose()


@pytest.mark.parametrize("lame_duck", [0, 1])
def test_under_load_every_request_is_answered_or_never_accepted(model, lame_duck):
    with serving(model, "--lame-duck", lame_duck) as server:
        outcomes = loaded_until_closed(server)
        assert server.wait() == 0, server.output
    assert outcomes.keys() == {"kept", "answered", "grpc", "refused"}, outcomes


def test_readiness_goes_off_first_and_requests_are_still_taken(model):
    with serving(model, "--lame-duck", 30) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/v2/health/ready").status_code == 200
        server.stop()
        eventually(lambda: client.get("/v2/health/ready").status_code == 503)
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/v2/models/m/infer", json=body([1, 2, 3, 4]))
        assert answer.json()["outputs"][0]["data"] == [2, 3, 4, 5]
        assert answer.headers["connection"] == "close"  # so clients leave between two requests
        with grpc.insecure_channel(server.grpc) as channel:
            assert first_of(channel.unary_unary(INFER)(message([1, 2, 3, 4]))) == 2
        assert server.process.poll() is None


def test_a_second_signal_ends_the_server_at_once(tmp_path):
    with serving(save(slow_plus(1), tmp_path, "m.onnx"), "--lame-duck", 60) as server:
        server.stop()
        eventually(lambda: "SIGTERM: stopping" in server.output)
        server.stop()
        assert server.wait(10) == -signal.SIGTERM


def test_the_first_process_of_a_container_is_ended_by_a_second_signal_too(model):
    """For it the kernel drops signals that have no handler."""
    before = ("unshare", "--pid", "--fork", "--kill-child")
    if subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("namespaces of processes cannot be made here")
    with serving(model, "--lame-duck", 60, before=before) as server:
        (inner,) = psutil.Process(server.process.pid).children()
        inner.terminate()
        eventually(lambda: "SIGTERM: stopping" in server.output)
        inner.terminate()
        assert server.wait(10) == 128 + signal.SIGTERM


def test_ctrl_c_stops_it_as_sigterm_does(model):
    with serving(model, "--lame-duck", 0) as server:
        server.stop(signal.SIGINT)
        assert server.wait() == 0


def test_what_is_accepted_is_answered_after_the_listener_has_closed(tmp_path):
    model = save(slow_plus(1), tmp_path, "m.onnx")
    x = np.zeros((64, 64), np.float32)
    with serving(model, "--lame-duck", 0) as server:
        channel = grpc.insecure_channel(server.grpc)
        begun = time.monotonic()
        channel.unary_unary(INFER)(message(x, 20_000))
        steps = int(20_000 * 2 / (time.monotonic() - begun))  # two seconds
        # More than there are streams, so that some wait in the queue.
        calls = [channel.unary_unary(INFER).future(message(x, steps)) for _ in range(4)]
        eventually(lambda: stats(server)["inference_count"] >= 1 and all_entered(server, 4))
        server.stop()
        eventually(lambda: refuses(server))
        assert [first_of(call.result()) for call in calls] == [1] * 4
        assert server.wait() == 0, server.output


def stats(server):
    return httpx.get(f"{server.url}/v2/models/m/stats").json()["model_stats"][0]


def all_entered(server, count):
    """Whether the process holds so many requests: they are on their way for 0.2 s."""
    time.sleep(0.2)
    return True


def refuses(server):
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 0.2).close()
    except OSError:
        return True
    return False


def test_streams_of_grpc_are_answered_and_then_ended(model):
    with serving(model, "--lame-duck", 0) as server, grpc.insecure_channel(server.grpc) as channel:
        more = threading.Event()

        def requests():
            yield message([1, 2, 3, 4])
            yield message([2, 2, 3, 4])
            more.wait(30)

        answers = channel.stream_stream(STREAM)(requests())
        first = [StreamResponse.FromString(next(answers)) for _ in range(2)]
        assert [it.error_message for it in first] == ["", ""]
        server.stop()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        more.set()
        assert server.wait(20) == 0, server.output


def test_clients_that_send_and_read_slowly_hold_the_stop_up_no_longer_than_grace(model):
    with serving(model, "--lame-duck", 0, "--grace", 2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        idle = socket.create_connection((host, int(port)))
        slow = socket.create_connection((host, int(port)))
        slow.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{"
        )
        deaf = socket.create_connection((host, int(port)))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(large_request(host))
        eventually(lambda: stats(server)["inference_count"] >= 1)
        server.stop()
        begun = time.monotonic()
        code = server.wait(30)
        assert time.monotonic() - begun < 15
        assert code == 0, server.output
        for client in (idle, slow, deaf):
            client.close()


def large_request(host, rows=1_000_000):
    """Of an answer of 16 MB, which no socket's buffers hold."""
    data = bytes(rows * 16)
    head = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,4],"parameters":'
        b'{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}' % (rows, len(data))
    )
    return (
        (
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n"
            b"inference-header-content-length: %d\r\n\r\n"
            % (host.encode(), len(head + data), len(head))
        )
        + head
        + data
    )


def test_a_slow_reader_gets_all_of_its_answer(model):
    with serving(model, "--lame-duck", 0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(large_request(host))
            eventually(lambda: stats(server)["inference_count"] >= 1)
            server.stop()
            eventually(lambda: refuses(server))
            received = bytearray()
            while part := client.recv(1 << 20):
                received += part
        assert received.count(np.float32(1).tobytes()) >= 4_000_000
        assert server.wait() == 0, server.output


def test_stopping_while_a_model_opens_ends_in_order(tmp_path):
    """A stop does not wait for what has not begun to serve."""
    for number in range(30):
        save(plus(number), tmp_path / f"m{number}" / "1")
    with serving(tmp_path, "--lame-duck", 0, ready=False) as server:
        server.stop()
        assert server.wait(30) == 0, server.output


def test_a_port_in_use_is_an_error_that_names_it(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--port", "--grpc-port"):
            other = "--grpc-port" if option == "--port" else "--port"
            ended = subprocess.run(
                [sys.executable, "-m", "deepsched", "serve", model, option, str(port), other, "0"],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert ended.returncode == 2, ended
            assert f"port {port} of 127.0.0.1 is in use" in ended.stderr
            assert "Traceback" not in ended.stderr


def endless(tmp_path):
    """A model whose runs take as long as they are told to; its folder."""
    save(slow_plus(1), tmp_path / "m" / "1")
    return tmp_path


def test_a_run_that_takes_longer_than_grace_is_given_up_and_the_exit_code_says_so(tmp_path):
    x = np.zeros((64, 64), np.float32)
    options = ("--lame-duck", 0, "--grace", 1)
    with serving(endless(tmp_path), *options) as server, grpc.insecure_channel(server.grpc) as c:
        call = c.unary_unary(INFER).future(message(x, 10**10))
        eventually(lambda: busy(server))
        server.stop()
        assert server.wait(30) == 1, server.output
        assert "1 request not answered within the 1 s of --grace" in server.output
        assert call.exception() is not None


def busy(server):
    """Whether the server's process computes."""
    process = psutil.Process(server.process.pid)
    return process.cpu_percent(0.2) > 30


def test_a_model_that_takes_for_ever_to_open_does_not_hold_the_stop_up(tmp_path):
    folder = endless(tmp_path)
    (folder / "m" / "warmup").mkdir()
    (folder / "m" / "warmup" / "steps").write_bytes(np.int64(10**10).tobytes())
    (folder / "m" / "config.pbtxt").write_text(
        """model_warmup { name: "w"
          inputs { key: "steps" value { data_type: TYPE_INT64 input_data_file: "steps" } }
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 64, 64 ] zero_data: true } } }"""
    )
    with serving(folder, "--lame-duck", 0, ready=False) as server:
        eventually(lambda: httpx.get(f"{server.url}/v2/health/live").status_code == 200)
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
        server.stop()
        assert server.wait(30) == 0, server.output
