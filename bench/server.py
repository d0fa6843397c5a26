"""`deepsched serve` against what is under it: a row for each promise, with its goal.

    python -m bench.server [--rows rest-small,grpc-image,...] [--rounds 5] [--requests 2000]

What is counted is a server process's CPU time for a request over one connection: of ours, with a
model that returns its input, and of a raw ASGI application on uvicorn, or of grpc.aio, that echoes
the same bytes. The two take turns; the ratio is of the medians over the rounds. With clients, it is
throughput against the engine in this process with the same number of callers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from deepsched import Context, Engine
from deepsched.benchmark import LoadOptions, bundled_model, measure
from deepsched.benchmark.percentiles import requests_for
from deepsched.client.engine import RemoteEngine, open_server
from deepsched.machine.state import State, StateWatch, by_state, states_of, summarize
from deepsched.server.grpc_messages import SERVICE, message_class

SHAPES = {"small": (128,), "image": (1, 3, 224, 224)}


Rounds = Callable[[argparse.Namespace], Iterator[tuple[float, float]]]
"""Ours and the other's, by rounds."""


@dataclass
class Row:
    name: str
    goal: float
    most: bool
    """Whether the goal is the most that counts as met, or the least."""
    measure: Rounds


# --- Servers in processes of their own ------------------------------------------------------

RAW_ASGI = """
import uvicorn
async def app(scope, receive, send):
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            break
    body = b"".join(parts)
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=PORT, http="httptools", loop="uvloop", log_level="error", access_log=False,
            lifespan="off")
"""

GRPC_ECHO = """
import asyncio, grpc
async def echo(message, context):
    return message
async def main():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 27)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("SERVICE", {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(echo)})])
    server.add_insecure_port("127.0.0.1:PORT")
    await server.start()
    await server.wait_for_termination()
import uvloop
uvloop.run(main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(arguments: list[str], port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens at port {port}")
        time.sleep(0.05)


def echo_arguments(code: str, port: int) -> list[str]:
    return ["-c", code.replace("PORT", str(port)).replace("SERVICE", SERVICE)]


def our_arguments(model: str, http: int, rpc: int, *options: str) -> list[str]:
    ports = ["--port", str(http), "--grpc-port", str(rpc)]
    return ["-m", "deepsched", "serve", model, *ports, *options]


# --- Requests -------------------------------------------------------------------------------


def rest_request(model: str, shape: tuple[int, ...]) -> bytes:
    raw = np.zeros(shape, np.float32).tobytes()
    text = msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": shape,
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + len(raw)}"
        "\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + text + raw


class RestClient:
    """One connection and one request after the other."""

    def __init__(self, port: int, model: str, shape: tuple[int, ...]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = rest_request(model, shape)
        self._buffer = bytearray(2**20)

    def __call__(self) -> None:
        self._socket.sendall(self._request)
        view, got, end = memoryview(self._buffer), 0, -1
        while got != end:
            count = self._socket.recv_into(view[got:])
            if not count:
                raise SystemExit("the server has closed the connection")
            got += count
            if end < 0 and (at := self._buffer.find(b"\r\n\r\n", 0, got)) >= 0:
                head = bytes(self._buffer[:at]).lower()
                if not head.startswith(b"http/1.1 200"):
                    raise SystemExit(f"refused: {bytes(self._buffer[:got])!r}")
                length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
                # "inference-header-content-length" ends so, too
                for line in head.split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = line.partition(b":")[2]
                end = at + 4 + int(length)

    def close(self) -> None:
        self._socket.close()


class GrpcClient:
    """One channel and one request after the other."""

    def __init__(self, port: int, model: str, shape: tuple[int, ...]) -> None:
        request = message_class("ModelInferRequest")(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=shape)
        request.raw_input_contents.append(np.zeros(shape, np.float32).tobytes())
        self._request = request.SerializeToString()
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", 1 << 27)]
        )
        self._call = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def __call__(self) -> None:
        self._call(self._request)

    def close(self) -> None:
        self._channel.close()


def cpu_us(process: psutil.Process, call: Callable[[], None], count: int) -> float:
    """CPU time of the server for a request, in us."""
    for _ in range(max(10, count // 10)):
        call()
    before = thread_ns(process.pid)
    for _ in range(count):
        call()
    after = thread_ns(process.pid)
    return sum(ns - before.get(thread, 0) for thread, ns in after.items()) / count / 1e3


def thread_ns(pid: int) -> dict[str, int]:
    """CPU time of each thread so far, as exact as the kernel's scheduler knows it."""
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            text = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
            found[thread] = int(text.split()[0])
    return found


def against_echo(kind: str, size: str) -> Rounds:
    client, code = {"rest": (RestClient, RAW_ASGI), "grpc": (GrpcClient, GRPC_ECHO)}[kind]

    def run(args: argparse.Namespace) -> Iterator[tuple[float, float]]:
        shape = SHAPES[size]
        count = args.requests if size == "small" else args.requests // 4
        http, rpc, echo = free_port(), free_port(), free_port()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "echo.onnx")
            onnx.save(echo_model(shape), path)
            arguments = our_arguments(str(path), http, rpc, *args.serve)
            with (
                running(arguments, http) as ours,
                running(echo_arguments(code, echo), echo) as other,
            ):
                wait_ready(http)
                calls = [
                    client(http if kind == "rest" else rpc, "echo", shape),
                    client(echo, "echo", shape),
                ]
                for _ in range(args.rounds):
                    yield cpu_us(ours, calls[0], count), cpu_us(other, calls[1], count)
                for call in calls:
                    call.close()

    return run


def echo_model(shape: tuple[int, ...]) -> onnx.ModelProto:
    """Returns its input."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def wait_ready(port: int) -> None:
    while True:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
            if b" 200 " in connection.recv(4096):
                return
        time.sleep(0.1)


def against_engine(model: str, callers: int) -> Rounds:
    """Requests a second over gRPC, and of the engine in this process."""

    def run(args: argparse.Namespace) -> Iterator[tuple[float, float]]:
        for _ in range(args.rounds):
            with served(model, args) as remote:
                ours = measure(remote, callers=callers, seconds=args.seconds)
            with in_process(model) as engine:
                other = measure(engine, callers=callers, seconds=args.seconds)
            yield ours.items_per_sec, other.items_per_sec

    return run


def poisson(model: str) -> Rounds:
    """The 99th percentile in ms of a Poisson load over gRPC, and of the engine in this process with
    the same arrivals: 70 % of what the server gives four clients."""

    def run(args: argparse.Namespace) -> Iterator[tuple[float, float]]:
        for _ in range(args.rounds):
            with served(model, args) as remote:
                rate = 0.7 * measure(remote, callers=4, seconds=args.seconds).items_per_sec
                load: LoadOptions = {
                    "rate": rate,
                    "poisson": True,
                    "seconds": max(args.seconds, 4 * requests_for(99) / rate),
                }
                ours = measure(remote, **load).percentile(99)
            with in_process(model) as engine:
                yield ours, measure(engine, **load).percentile(99)

    return run


@contextlib.contextmanager
def served(model: str, args: argparse.Namespace) -> Iterator[RemoteEngine]:
    """A bundled model behind a server of ours, over gRPC."""
    http, rpc = free_port(), free_port()
    path = str(bundled_model(model))
    with running(our_arguments(path, http, rpc, *args.serve), http):
        wait_ready(http)
        with contextlib.closing(open_server(f"grpc://127.0.0.1:{rpc}", Path(path).stem)) as remote:
            yield remote


@contextlib.contextmanager
def in_process(model: str) -> Iterator[Engine]:
    """The same model here, on the streams that a server has."""
    with (
        Context(scheduler="elastic") as context,
        Engine(bundled_model(model), None, context=context) as engine,
    ):
        yield engine


def watched(
    rounds: Iterator[tuple[float, float]],
) -> tuple[dict[State, tuple[float, float]], str]:
    """The medians of ours and the other's by state of the machine, and which states there were."""
    seen, figures = [], []
    while True:
        watch = StateWatch()
        try:
            figures.append(next(rounds))
        except StopIteration:
            break
        seen.append(watch.end(others_share=0.0))  # the servers are the other processes
    found = {}
    for state, of in by_state(seen, figures).items():
        ours, other = zip(*of, strict=True)
        found[state] = statistics.median(ours), statistics.median(other)
    return found, summarize(states_of(seen))


ROWS = [
    Row("rest-small", 1.3, True, against_echo("rest", "small")),
    Row("rest-image", 1.2, True, against_echo("rest", "image")),
    Row("grpc-small", 1.2, True, against_echo("grpc", "small")),
    Row("grpc-image", 1.2, True, against_echo("grpc", "image")),
    *(
        Row(f"{model}-{callers}", 0.93, False, against_engine(model, callers))
        for model in ("squeezenet", "resnet50")
        for callers in (4, 16)
    ),
    Row("squeezenet-poisson", 1.3, True, poisson("squeezenet")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--serve", nargs="*", default=[], help="options of deepsched serve")
    args = parser.parse_args()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    table = Table("row", "state", "ours", "other", "ratio", "goal", "met")
    for row in ROWS:
        if row.name not in args.rows.split(","):
            continue
        goal = f"{'at most' if row.most else 'at least'} {row.goal}"
        of_states, states = watched(row.measure(args))
        print(f"{row.name}: {states}", file=sys.stderr, flush=True)
        for state, (ours, other) in of_states.items():
            ratio = ours / other
            met = ratio <= row.goal if row.most else ratio >= row.goal
            table.add_row(
                *(row.name, str(state), f"{ours:.1f}", f"{other:.1f}", f"{ratio:.3f}", goal),
                "yes" if met else "no",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
