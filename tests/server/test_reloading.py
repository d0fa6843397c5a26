"""Reloads under load: each answer is that of a version that served then, and nothing grows."""

from __future__ import annotations

import asyncio

import grpc
import httpx
import numpy as np
import psutil
import pytest

from deepsched.server.grpc_messages import message_class
from tests.support.serving import body, plus, save, serving

pytestmark = pytest.mark.server

NUM_RELOADS = 50
_SETTLED = 10
"""Reloads after which nothing grows any more: caches and pools are filled."""

_MOST_GROWTH = 24 * 2**20
"""Bytes, in 40 reloads. A session of this model alone has about 1 MB."""


class Load:
    """Clients that ask for y = x + version, and note every answer that no version can have given.

    Args:
        loaded: the highest version whose load has been answered.
        written: the highest that is there to be loaded.
    """

    def __init__(self, server):
        self.server = server
        self.loaded = self.written = 1
        self.num_answers = 0
        self.wrong = []
        self.is_over = False

    def note(self, answer, least, what):
        self.num_answers += 1
        if not least <= answer <= self.written:
            self.wrong.append((what, answer, least, self.written))

    async def over_http(self):
        async with httpx.AsyncClient(verify=False, base_url=self.server.url) as client:
            while not self.is_over:
                least = self.loaded
                answer = await client.post("/v2/models/m/infer", json=body([0, 0, 0, 0]))
                if answer.status_code != 200:
                    self.wrong.append(("http", answer.status_code, answer.text))
                    return
                answer = answer.json()
                self.note(answer["outputs"][0]["data"][0], least, "http")
                self.note(float(answer["model_version"]), least, "http's version")

    async def over_grpc(self):
        request = message_class("ModelInferRequest")(model_name="m")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        request.raw_input_contents.append(bytes(16))
        message = request.SerializeToString()
        response = message_class("ModelInferResponse")
        async with grpc.aio.insecure_channel(self.server.grpc) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while not self.is_over:
                least = self.loaded
                answer = response.FromString(await call(message))
                value = np.frombuffer(answer.raw_output_contents[0], np.float32)[0]
                self.note(value, least, "grpc")


def test_fifty_reloads_under_load_lose_nothing_and_leave_nothing_behind(tmp_path):
    save(plus(1), tmp_path / "m" / "1")
    with serving(tmp_path, "--lame-duck", 0) as server:
        process = psutil.Process(server.process.pid)
        load = Load(server)
        sizes = {}

        async def reload():
            async with httpx.AsyncClient(verify=False, base_url=server.url, timeout=60) as client:
                for version in range(2, NUM_RELOADS + 2):
                    load.written = version
                    save(plus(version), tmp_path / "m" / str(version))
                    answer = await client.post("/v2/repository/models/m/load")
                    assert answer.status_code == 200, answer.text
                    load.loaded = version
                    if version in (_SETTLED, NUM_RELOADS + 1):
                        while await states(client) != {"READY", "UNAVAILABLE"}:
                            await asyncio.sleep(0.01)  # the last one closes
                        sizes[version] = size(process)
            load.is_over = True

        async def main():
            clients = [load.over_http() for _ in range(4)] + [load.over_grpc() for _ in range(4)]
            await asyncio.gather(reload(), *clients)

        asyncio.run(main())
        server.stop()
        assert server.wait() == 0
    assert not load.wrong, load.wrong[:3]
    assert load.num_answers > NUM_RELOADS
    before, after = sizes.values()
    assert after["files"] <= before["files"] + 2, sizes  # a timer or a poll under way
    assert after["threads"] <= before["threads"], sizes
    assert after["bytes"] - before["bytes"] < _MOST_GROWTH, sizes


async def states(client):
    answer = await client.post("/v2/repository/index")
    return {it["state"] for it in answer.json()}


def size(process):
    memory = process.memory_full_info()
    return {
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "bytes": memory.uss,
    }


def test_reloads_by_watching_a_folder_lose_nothing(tmp_path):
    save(plus(1), tmp_path / "m" / "1")
    with serving(tmp_path, "--watch", "--lame-duck", 0) as server:
        load = Load(server)

        async def change():
            async with httpx.AsyncClient(verify=False, base_url=server.url) as client:
                for version in range(2, 6):
                    load.written = version
                    save(plus(version), tmp_path / "m" / str(version))
                    while True:
                        model = (await client.get("/v2/models/m")).json()
                        if model["versions"] == [str(version)]:
                            break
                        await asyncio.sleep(0.02)
                    load.loaded = version
            load.is_over = True

        async def main():
            await asyncio.gather(change(), load.over_http(), load.over_grpc())

        asyncio.run(main())
    assert not load.wrong, load.wrong[:3]
