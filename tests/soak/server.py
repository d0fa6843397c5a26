"""`deepsched serve` for minutes: clients that leave at any moment, reloads, failing loads, a stop.

    python -m tests.soak.server                  # 10 minutes, 200 clients, 50 reloads
    python -m tests.soak.server --minutes 1

Each answer must be that of a version that served when it was asked for. At the end SIGTERM comes
under load: a client may then be refused, and nothing else. The server's memory, files and threads
are measured over the time, and must not grow. Exit code 1 if anything of that fails.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

from deepsched.server.grpc_messages import message_class

INFER = "/inference.GRPCInferenceService/ModelInfer"
_PATIENCE_S = 60
"""After which an answer counts as lost."""

_MOST_GROWTH = 0.1
"""Of the memory, from the first third of the time to the last."""

_LEAST_MEMORY = 16 * 2**20
"""Less growth than this is what an allocator does."""

Address = tuple[str, int]


def plus(number: int) -> onnx.ModelProto:
    """y = x + number: the answer says which version gave it."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "k"], ["y"])],
        "plus",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(np.array([number], np.float32), "k")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Soak:
    """What the clients know, and what they have seen.

    `loaded`: the highest version whose load has been answered. `written`: the highest on disk.
    """

    def __init__(self, folder: Path, http: Address, rpc: str) -> None:
        self.folder = folder
        self.http = http
        self.rpc = rpc
        self.loaded = self.written = 1
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.is_stopping = False

    def write(self, version: int, content: bytes) -> None:
        """Puts a version there by one rename."""
        target = self.folder / "m" / str(version)
        target.mkdir(parents=True, exist_ok=True)
        (target / "new").write_bytes(content)
        os.replace(target / "new", target / "model.onnx")

    def note(self, value: float, x: float, least: int, what: str) -> None:
        """An answer to x, asked for when version `least` had been loaded."""
        self.outcomes[what] += 1
        if not least <= value - x <= self.written:
            self.wrong.append(f"{what}: {value} for {x}, of versions {least} to {self.written}")

    def lost(self, what: str, error: BaseException) -> None:
        """A request that was sent and not answered."""
        self.wrong.append(f"{what}: {error!r}")

    # --- Clients ----------------------------------------------------------------------------

    async def over_http(self, rng: random.Random) -> None:
        """A client that keeps its connection for a while, and leaves at any moment."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.http)
            except OSError:
                if self.is_stopping:
                    self.outcomes["refused"] += 1
                    return
                raise
            try:
                for _ in range(rng.randrange(1, 50)):
                    if not await self._ask(reader, writer, rng):
                        break
                    await asyncio.sleep(rng.random() * 0.02)
            finally:
                writer.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: random.Random
    ) -> bool:
        """One request. Returns whether the connection may be used for another."""
        x, least = float(rng.randrange(1000)), self.loaded
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [x] * 4}
        body = json.dumps({"inputs": [tensor]}).encode()
        request = (
            b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        ) + body
        chance = rng.random()
        if chance < 0.05:  # in the middle of what it sends
            writer.write(request[: rng.randrange(len(request))])
            await asyncio.sleep(rng.random() * 0.01)
            self.outcomes["left while sending"] += 1
            return False
        writer.write(request)
        if chance < 0.1:  # in the middle of what it waits for
            await asyncio.sleep(rng.random() * 0.005)
            self.outcomes["left while waiting"] += 1
            return False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
                answer = json.loads(await reader.readexactly(length))
        except (OSError, EOFError, TimeoutError) as error:
            self.lost("http", error)
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            self.wrong.append(f"http: {head[:40]!r} {answer}")
            return False
        self.note(answer["outputs"][0]["data"][0], x, least, "http")
        return b"connection: close" not in head.lower()

    async def over_grpc(self, rng: random.Random) -> None:
        """The same over gRPC, where who leaves cancels."""
        request = message_class("ModelInferRequest")(model_name="m")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        response = message_class("ModelInferResponse")
        while True:
            options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            async with grpc.aio.insecure_channel(self.rpc, options=options) as channel:
                call = channel.unary_unary(INFER)
                for _ in range(rng.randrange(1, 200)):
                    x, least = float(rng.randrange(1000)), self.loaded
                    request.ClearField("raw_input_contents")
                    request.raw_input_contents.append(np.full(4, x, np.float32).tobytes())
                    begun = call(request.SerializeToString(), timeout=_PATIENCE_S)
                    if rng.random() < 0.05:
                        await asyncio.sleep(rng.random() * 0.005)
                        begun.cancel()
                        self.outcomes["left while waiting"] += 1
                        continue
                    try:
                        answer = response.FromString(await begun)
                    except grpc.aio.AioRpcError as error:
                        if self.is_stopping and error.code() == grpc.StatusCode.UNAVAILABLE:
                            self.outcomes["refused"] += 1
                            return
                        self.lost("grpc", error)
                        continue
                    values = np.frombuffer(answer.raw_output_contents[0], np.float32)
                    self.note(float(values[0]), x, least, "grpc")
                    await asyncio.sleep(rng.random() * 0.02)

    # --- What happens meanwhile -------------------------------------------------------------

    async def reload(self, count: int, seconds: float) -> None:
        """Loads `count` versions in `seconds`; before every fifth one a broken one, which fails."""
        for version in range(2, count + 2):
            began = time.monotonic()
            if version % 5 == 0:
                self.write(version, b"no model")
                if await self._load() == 200:
                    self.wrong.append(f"a broken version {version} was loaded")
                self.outcomes["failed loads"] += 1
            self.written = version
            self.write(version, plus(version).SerializeToString())
            status = await self._load()
            if status != 200:
                self.wrong.append(f"version {version} was not loaded: {status}")
            self.loaded = version
            self.outcomes["loads"] += 1
            await asyncio.sleep(max(0.0, seconds / count - (time.monotonic() - began)))

    async def _load(self) -> int:
        reader, writer = await asyncio.open_connection(*self.http)
        writer.write(
            b"POST /v2/repository/models/m/load HTTP/1.1\r\nhost: localhost\r\n"
            b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])


async def _measure(process: psutil.Process, sizes: list[tuple[int, int, int]]) -> None:
    """Memory of its own, files and threads, twenty times a minute."""
    while True:
        await asyncio.sleep(3)
        sizes.append((process.memory_full_info().uss, process.num_fds(), process.num_threads()))


async def _run(soak: Soak, args: argparse.Namespace, process: psutil.Process) -> list[str]:
    rng = random.Random(args.seed)
    clients = [
        asyncio.create_task(
            (soak.over_grpc if number % 4 == 0 else soak.over_http)(random.Random(rng.random()))
        )
        for number in range(args.clients)
    ]
    sizes: list[tuple[int, int, int]] = []
    measuring = asyncio.create_task(_measure(process, sizes))
    await soak.reload(args.reloads, args.minutes * 60)
    measuring.cancel()
    soak.is_stopping = True
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*clients), 120)
    return _growth(sizes)


def _growth(sizes: list[tuple[int, int, int]]) -> list[str]:
    """What grew from the first third of the measurements to the last, by their medians."""
    third = max(1, len(sizes) // 3)
    before, after = (np.median(part, axis=0) for part in (sizes[:third], sizes[-third:]))
    print(f"memory, files, threads: first third {before.tolist()}, last third {after.tolist()}")
    grown = []
    if after[0] > before[0] * (1 + _MOST_GROWTH) and after[0] - before[0] > _LEAST_MEMORY:
        grown.append("memory grew")
    if after[1] > before[1] * 1.2 + 5:  # as many as clients are connected
        grown.append("files grew")
    if after[2] > before[2] + 8:  # those of a pool, and of two versions at once
        grown.append("threads grew")
    return grown


def main() -> int:
    """Runs it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soak = Soak(folder, ("", 0), "")
        soak.write(1, plus(1).SerializeToString())
        command = [sys.executable, "-m", "deepsched", "serve", name, "-q", "--lame-duck", "2"]
        with subprocess.Popen(
            [*command, "--port", "0", "--grpc-port", "0"], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                host, port = server.stdout.readline().strip().removeprefix("http://").split(":")
                soak.http = host, int(port)
                soak.rpc = server.stdout.readline().strip().removeprefix("grpc://")
                failures = asyncio.run(_run(soak, args, psutil.Process(server.pid)))
                code = server.wait(60)
            finally:
                server.kill()
    for outcome, count in sorted(soak.outcomes.items()):
        print(f"{outcome:20} {count}")
    failures += soak.wrong
    if code:
        failures.append(f"the server ended with {code}")
    for failure in failures[:20]:
        print("FAILED:", failure)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
