"""The programs in examples/: they serve, they stop in order, and they lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from deepsched import Engine, Topology
from deepsched.errors import ClosedError, InputError
from deepsched.machine.leases import holders
from examples import batch_folder, decoding, fastapi_app
from examples.asyncio_worker import END, Job, Worker
from tests.support import models

ROOT = Path(__file__).parent.parent
NPY = {"content-type": "application/x-npy"}

pytestmark = pytest.mark.field  # it starts each program, several times


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def inputs(number, width=64):
    return np.random.default_rng(number).standard_normal((1, width)).astype(np.float32)


def start(*command, before=(), **options):
    return subprocess.Popen(
        [*before, sys.executable, *command],
        cwd=ROOT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("env", {})},
        **options,
    )


@contextlib.contextmanager
def ended(process):
    """However the test ends, so does the process."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- decoding -------------------------------------------------------------------------------------


def header(text):
    """An .npy file that begins so."""
    text = text.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def described(shape):
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n")


HOSTILE_NPY = {
    "empty": b"",
    "a zip file": b"PK\x03\x04" + bytes(60),
    "a sign for each level": header("-" * 3000),
    "more signs than numpy parses": header("-" * 6000),
    "a parenthesis for each level": header("(" * 3000),
    "more than a header may have": header("(" * 5000),
    "True as a size": described("(True,)") + bytes(4),
    "a size below nothing": described("(-1,)") + bytes(8),
    "more than there is": described("(2,)") + bytes(4),
    "an unknown version": b"\x93NUMPY\x09\x00" + bytes(60),
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_a_hostile_npy_file_is_an_input_error(name):
    with pytest.raises(InputError, match=r"\.npy file.*: ."):
        decoding.view_npy(HOSTILE_NPY[name])


def image_file(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_bad_image_is_an_input_error():
    rng = np.random.default_rng(5)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    num_refused = 0
    for kind in ("png", "jpeg", "webp"):
        whole = image_file(picture, kind)
        for _ in range(200):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(damaged), 100), 3):
                damaged[place] = rng.integers(256)
            try:
                decoding.decode_image(io.BytesIO(damaged), [1, 3, 8, 8])
            except InputError:
                num_refused += 1
    assert num_refused > 200


def test_an_image_of_too_many_pixels_is_not_unpacked(monkeypatch):
    for kind in ("png", "jpeg"):
        file = image_file(Image.new("L", (5001, 5000)), kind)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was unpacked"))
            with pytest.raises(InputError, match="5001 x 5000 pixels; 25000000 are allowed"):
                decoding.decode_image(io.BytesIO(file), [1, 3, 8, 8])


def test_a_jpeg_is_decoded_no_larger_than_needed(monkeypatch):
    sizes = []
    convert = Image.Image.convert

    def noting(image, *args):
        sizes.append(image.size)
        return convert(image, *args)

    monkeypatch.setattr(Image.Image, "convert", noting)
    file = image_file(Image.new("RGB", (800, 640), (255, 0, 0)), "jpeg")
    pixels = decoding.decode_image(io.BytesIO(file), ["n", 3, 100, 90])
    assert sizes[0] == (100, 80) or sizes[0] == (200, 160)
    assert pixels.shape == (1, 3, 100, 90)
    assert pixels[0, 0].min() > 0.98


def test_the_examples_in_the_decoder_run():
    assert doctest.testmod(decoding) == (0, 4)  # none of four failed


def test_a_model_without_images_takes_none():
    with pytest.raises(InputError, match="takes no images"):
        decoding.decode_image(io.BytesIO(), [1, 64])


# --- fastapi_app ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def client_of(app):
    """A client that calls the application without a network, while it runs."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def test_many_clients_get_what_the_engine_says(mlp):
    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            sent = [inputs(number) for number in range(50)]
            answers = await asyncio.gather(
                *(client.post("/predict", content=npy(x), headers=NPY) for x in sent)
            )
            with Engine(mlp) as engine:
                for x, answer in zip(sent, answers, strict=True):
                    assert answer.status_code == 200
                    expected = engine.run([x])[0]
                    assert answer.json()["outputs"] == {"y": expected.tolist()}
            stats = (await client.get("/stats")).json()
            assert stats["done"] == 51  # and the one that warms up
            assert (await client.get("/model")).json()["inputs"] == [
                {"name": "x", "shape": [1, 64], "dtype": "float32"}
            ]

    asyncio.run(main())


def test_json_in_and_npy_out(mlp):
    async def main():
        x = inputs(1)
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            answers = [
                await client.post("/predict", headers={"accept": NPY["content-type"]}, **body)
                for body in (
                    {"json": {"inputs": {"x": x.tolist()}}},
                    {"json": {"inputs": [x.tolist()]}},
                )
            ]
        with Engine(mlp) as engine:
            for answer in answers:
                assert np.array_equal(np.load(io.BytesIO(answer.content)), engine.run([x])[0])

    asyncio.run(main())


def test_bad_requests_are_refused_and_serving_goes_on(mlp, monkeypatch):
    monkeypatch.setattr(fastapi_app, "MOST_BYTES", 1000)
    monkeypatch.setattr(fastapi_app, "MOST_JSON_BYTES", 500)
    good = npy(inputs(1))
    huge = good.replace(b"(1, 64)", b"(9999999999, 99999999999)")[:200]
    refused = [
        (good[:-1], NPY, 422),
        (b"no array", NPY, 422),
        (npy(np.array([{}], object)), NPY, 422),
        (huge, NPY, 422),
        (npy(np.zeros((1, 65), np.float32)), NPY, 422),
        (npy(np.zeros((1, 64), np.int32)), NPY, 422),
        (b"{", {"content-type": "application/json"}, 422),
        (b'{"inputs": {"z": [1]}}', {"content-type": "application/json"}, 422),
        (b'{"inputs": [[[1, 2], [3]]]}', {"content-type": "application/json"}, 422),
        (b"a,b", {"content-type": "text/csv"}, 415),
        (bytes(1001), NPY, 413),
        (bytes(501), {"content-type": "application/json"}, 413),
        (b"[" * 400, {"content-type": "application/json"}, 422),
        (b"no image", {"content-type": "image/png"}, 422),  # nor does the model take one
        *((body[:1000], NPY, 422) for body in HOSTILE_NPY.values()),
    ]

    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            for body, headers, status in refused:
                answer = await client.post("/predict", content=body, headers=headers)
                assert (answer.status_code, bool(answer.json()["detail"])) == (status, True), body
            assert (await client.post("/predict", content=good, headers=NPY)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"inputs": 5}', b"[]", b'{"inputs": {"x": {}}}']
)
def test_bad_json_gets_422(mlp, body):
    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            headers = {"content-type": "application/json"}
            answer = await client.post("/predict", content=body, headers=headers)
            assert (answer.status_code, "inputs" in answer.json()["detail"]) == (422, True)

    asyncio.run(main())


def spin_body(steps):
    return {"inputs": [steps, [[1.0] * 64]]}


def test_a_late_request_gets_504(tmp_path):
    path = models.save(models.spin(rows=1), tmp_path)

    async def main():
        async with client_of(fastapi_app.create_app(path, timeout=0.05)) as client:
            answer = await client.post("/predict", json=spin_body(10**9))
            assert answer.status_code == 504
            assert answer.json()["detail"] == "took longer than 0.05 s"
            assert (await client.post("/predict", json=spin_body(1))).status_code == 200

    asyncio.run(main())


def test_requests_beyond_the_queue_get_503_at_once(tmp_path):
    path = models.save(models.spin(rows=1), tmp_path)
    queue = 2

    async def main():
        app = fastapi_app.create_app(path, 60, queue, scheduler="single_stream")
        async with client_of(app) as client:
            service = app.state.service
            # Long ones take the stream and the queue; their callers give up in the end.
            long = [
                asyncio.ensure_future(client.post("/predict", json=spin_body(10**9)))
                for _ in range(1 + queue)
            ]
            while service.num_under_way < 1 + queue:
                assert not any(task.done() for task in long)
                await asyncio.sleep(0)
            answer = await client.post("/predict", content=never_read(), headers=NPY)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
            assert "3 requests are under way" in answer.json()["detail"]
            for task in long:
                task.cancel()
            await asyncio.wait(long)
            assert service.num_under_way == 0
            assert (await client.post("/predict", json=spin_body(1))).status_code == 200

    asyncio.run(main())


async def endless(begun, first=b'{"inputs"'):
    """A body that stops after its first bytes."""
    yield first
    begun.set()
    await asyncio.Event().wait()


async def dripping():
    """A body that never stops, and never gets far."""
    while True:
        yield b" "
        await asyncio.sleep(0)


async def never_read():
    pytest.fail("the body was read")
    yield b""


def test_a_body_that_comes_too_slowly_gets_504(mlp):
    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=0.05)) as client:
            headers = {"content-type": "application/json"}
            body = endless(asyncio.Event())
            answer = await client.post("/predict", content=body, headers=headers)
            assert answer.status_code == 504
            assert (await client.get("/stats")).json()["under_way"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("body", [lambda: endless(asyncio.Event()), dripping])
def test_a_body_that_stalls_gets_408_before_the_timeout(mlp, monkeypatch, body):
    monkeypatch.setattr(fastapi_app, "MOST_STALL", 0.05)

    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            answer = await client.post("/predict", content=body(), headers=NPY)
            assert (answer.status_code, answer.headers["connection"]) == (408, "close")
            stats = (await client.get("/stats")).json()
            assert (stats["under_way"], stats["bytes_under_way"]) == (0, 0)

    asyncio.run(main())


def test_a_long_body_that_goes_on_is_read_to_its_end(mlp, monkeypatch):
    monkeypatch.setattr(fastapi_app, "LEAST_PROGRESS", 100)
    body = npy(np.zeros((9, 64), np.float32))
    reschedules = []
    timeout = asyncio.timeout

    def noting(seconds):
        limit = timeout(seconds)
        reschedule = limit.reschedule
        limit.reschedule = lambda when: reschedules.append(when) or reschedule(when)
        return limit

    monkeypatch.setattr(fastapi_app.asyncio, "timeout", noting)

    async def in_parts():
        for begin in range(0, len(body), 60):
            yield body[begin : begin + 60]

    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            answer = await client.post("/predict", content=in_parts(), headers=NPY)
            assert answer.status_code == 422  # it does not fit, so it was read
        # Each second part is 100 bytes on. Two more: a limit's begin is one, and there are two.
        assert len(reschedules) == len(body) // 120 + 2

    asyncio.run(main())


def test_idle_clients_lock_nobody_out(mlp):
    with ended(serve(mlp)) as server, contextlib.ExitStack() as stack:
        address = address_of(server)
        host, port = address.removeprefix("http://").split(":")
        client = stack.enter_context(httpx.Client(base_url=address, timeout=60))
        # 32 MiB each of 256, and more of them than the queue has places.
        for _ in range(80):
            idle = stack.enter_context(socket.create_connection((host, int(port))))
            idle.sendall(
                b"POST /predict HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\n"
                b"content-type: application/x-npy\r\ncontent-length: 33554432\r\n\r\n"
            )
            # The server asks for the body: it is waiting for it now.
            assert idle.recv(100).startswith(b"HTTP/1.1 100 ")
        answers = [client.post("/predict", content=npy(inputs(1)), headers=NPY) for _ in range(60)]
        assert {answer.status_code for answer in answers} == {200}


def test_slow_decoding_gets_504_at_once(colour, monkeypatch):
    gate = threading.Event()
    decode = fastapi_app.decode_image

    def slow(*args):
        gate.wait()
        return decode(*args)

    monkeypatch.setattr(fastapi_app, "decode_image", slow)
    body = image_file(Image.new("L", (30, 20), 255))
    headers = {"content-type": "image/png"}

    async def main():
        app = fastapi_app.create_app(colour, timeout=0.05)
        async with client_of(app) as client:
            try:
                answer = await client.post("/predict", content=body, headers=headers)
                assert answer.status_code == 504
            finally:
                gate.set()
            assert app.state.service.num_under_way == 0
            app.state.service.timeout = 60
            answer = await client.post("/predict", content=body, headers=headers)
            assert answer.status_code == 200

    asyncio.run(main())


def test_reading_the_body_counts_against_the_timeout(mlp, monkeypatch):
    async def main():
        app = fastapi_app.create_app(mlp, timeout=60)
        async with client_of(app) as client:
            engine = app.state.service.engine
            run_async = engine.run_async
            given = []

            def noting(inputs, timeout):
                given.append(timeout)
                return run_async(inputs, timeout=timeout)

            monkeypatch.setattr(engine, "run_async", noting)
            answer = await client.post("/predict", content=npy(inputs(1)), headers=NPY)
            assert answer.status_code == 200
        assert 0 < given[0] < 60

    asyncio.run(main())


def test_bodies_are_bounded_by_the_bytes_that_arrived(mlp, monkeypatch):
    monkeypatch.setattr(fastapi_app, "MOST_BYTES_UNDER_WAY", 2000)
    monkeypatch.setattr(fastapi_app, "MOST_STALL", 60)
    x = npy(inputs(1))

    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:

            def post(content, **length):
                return client.post("/predict", content=content, headers={**NPY, **length})

            begun = [asyncio.Event() for _ in range(2)]
            long = [
                asyncio.ensure_future(
                    post(endless(event, bytes(750)), **{"content-length": "1000"})
                )
                for event in begun
            ]
            for event in begun:
                await event.wait()
            # Refused unread where the length says so; else when the bytes are there.
            for answer in (
                await post(never_read(), **{"content-length": "501"}),
                await post(endless(asyncio.Event(), bytes(501))),
            ):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
                assert "1500 bytes are under way" in answer.json()["detail"]
            assert (await post(x)).status_code == 200
            for task in long:
                task.cancel()
            await asyncio.wait(long)
            stats = (await client.get("/stats")).json()
            assert (stats["under_way"], stats["bytes_under_way"]) == (0, 0)
            assert (await post(bytes(1900))).status_code == 422

    asyncio.run(main())


def test_a_long_body_gets_413_with_or_without_content_length(mlp, monkeypatch):
    monkeypatch.setattr(fastapi_app, "MOST_BYTES", 1000)

    async def long_body():
        for _ in range(3):
            yield bytes(400)

    async def main():
        async with client_of(fastapi_app.create_app(mlp, timeout=60)) as client:
            for length in ({}, {"content-length": "1200"}, {"content-length": "9" * 5000}):
                answer = await client.post(
                    "/predict", content=long_body(), headers={**NPY, **length}
                )
                assert answer.status_code == 413

    asyncio.run(main())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_json_lacks_get_406_or_npy(tmp_path, value):
    path = models.save(models.identity(), tmp_path)
    x = np.array([value], np.float32)

    async def main():
        async with client_of(fastapi_app.create_app(path, timeout=60)) as client:
            answer = await client.post("/predict", content=npy(x), headers=NPY)
            assert answer.status_code == 406
            assert NPY["content-type"] in answer.json()["detail"]
            headers = {**NPY, "accept": NPY["content-type"]}
            answer = await client.post("/predict", content=npy(x), headers=headers)
            assert np.array_equal(np.load(io.BytesIO(answer.content)), x, equal_nan=True)

    asyncio.run(main())


def test_a_run_that_fails_gets_500_and_says_why(tmp_path):
    path = models.save(models.gather(), tmp_path)

    async def main():
        async with client_of(fastapi_app.create_app(path, timeout=60)) as client:
            answer = await client.post("/predict", json={"inputs": {"x": [1], "index": [7]}})
            assert answer.status_code == 500
            assert "out of" in answer.json()["detail"]

    asyncio.run(main())


def test_a_view_of_an_npy_file_copies_nothing():
    body = bytearray(npy(np.arange(6, dtype=np.float32).reshape(2, 3)))
    view = decoding.view_npy(body)
    assert view.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert view.flags.aligned
    body[-4:] = bytes(4)
    assert view[1, 2] == 0
    fortran = np.asfortranarray(view)
    assert decoding.view_npy(bytearray(npy(fortran))).tolist() == view.tolist()


def serve(model, **env):
    """uvicorn with the application, and its address. Port 0: the kernel chooses a free one."""
    return start(
        "-m",
        "uvicorn",
        "examples.fastapi_app:app",
        "--port",
        "0",
        env={"MODEL": model, "TIMEOUT": "60", **env},
        stderr=subprocess.PIPE,
    )


def address_of(server):
    """Where it serves, when it says so."""
    for line in server.stderr:
        if match := re.search(r"running on (http://\S+)", line):
            return match[1]
    raise AssertionError("it ended")


def test_sigterm_lets_uvicorn_finish_running_requests(mlp, tmp_path):
    path = models.save(models.spin(rows=1), tmp_path, "spin.onnx")
    with ended(serve(path)) as server, ThreadPoolExecutor(8) as pool:
        address = address_of(server)
        x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)

        def post(steps):
            body = {"inputs": [steps, x.tolist()]}
            answer = httpx.post(f"{address}/predict", json=body, timeout=60)
            return answer.status_code, np.float32(answer.json()["outputs"]["y"])

        for status, y in pool.map(post, range(1, 9)):
            assert status == 200
            assert np.array_equal(y, x)
        # One that takes a while; when it has come to the engine, the server is told to end.
        slow = pool.submit(post, 200_000)
        while not httpx.get(f"{address}/stats").json()["under_way"]:
            assert not slow.done()
        server.send_signal(signal.SIGTERM)
        status, y = slow.result()
        assert status == 200
        assert np.array_equal(y, x)
        assert server.wait(60) in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in server.stderr.read()


@pytest.mark.skipif(len(Topology.detect().cores) < 2, reason="two workers need two cores")
def test_workers_share_the_cores_instead_of_fighting_over_them(mlp):
    with ended(serve(mlp, WEB_CONCURRENCY="2")) as server:
        num_ready = 0
        while num_ready < 2:  # each says so when its engine is there
            line = server.stderr.readline()
            assert line, "it ended"
            num_ready += "Application startup complete" in line
        one, other = (set(holder.cpus) for holder in holders() if holder.is_lease)
        assert one and other and not one & other
        server.send_signal(signal.SIGTERM)
        server.wait(60)


# --- asyncio_worker -------------------------------------------------------------------------------


class Jobs:
    """A queue of jobs for a worker, and what it reports: when `broker` lets it, as a real one."""

    def __init__(self, engine, concurrency=4, timeout=60.0, grace=60.0):
        self.queue = asyncio.Queue()
        self.broker = asyncio.Event()
        self.broker.set()
        self.num_reporting = 0
        self.results = {}
        self.num_loading = 0
        self.most_loading = 0
        self.worker = Worker(engine, self.queue, self._note, concurrency, timeout, grace)

    def put(self, name, load):
        self.queue.put_nowait(Job(name, load))

    async def _note(self, result):
        self.num_reporting += 1
        await self.broker.wait()
        assert result.name not in self.results, "reported twice"
        self.results[result.name] = result


def fail_to_load():
    raise FileNotFoundError("no such file")


def test_a_worker_reports_each_job_once_despite_failures(mlp):
    async def main():
        with Engine(mlp, scheduler="multi_stream") as engine:
            jobs = Jobs(engine)
            for number in range(40):
                jobs.put(number, lambda number=number: inputs(number))
            jobs.put("unreadable", fail_to_load)
            jobs.put("too wide", lambda: inputs(1, 65))
            jobs.queue.put_nowait(END)
            await jobs.worker.work()
            for number in range(40):
                outputs = jobs.results.pop(number).outputs
                assert np.array_equal(outputs[0], engine.run([inputs(number)])[0])
        errors = {name: result.error for name, result in jobs.results.items()}
        assert errors["unreadable"] == "no such file"
        assert "expected shape [1, 64]" in errors["too wide"]
        assert len(errors) == 2

    asyncio.run(main())


def test_a_worker_keeps_to_its_concurrency(mlp):
    async def main():
        gate, first = threading.Event(), threading.Semaphore(0)

        def load():
            first.release()
            gate.wait()
            return inputs(1)

        with Engine(mlp) as engine:
            jobs = Jobs(engine, concurrency=2)
            for number in range(10):
                jobs.put(number, load)
            jobs.queue.put_nowait(END)
            working = asyncio.ensure_future(jobs.worker.work())
            for _ in range(2):
                await asyncio.to_thread(first.acquire)
            for _ in range(100):  # turns of the event loop in which it could take more
                await asyncio.sleep(0)
            assert jobs.queue.qsize() == 9  # with END
            gate.set()
            await working
            assert len(jobs.results) == 10

    asyncio.run(main())


def run_spin(steps):
    """A worker takes one input; the model has two."""
    model = models.spin()
    eye = model.graph.initializer.add()
    eye.CopyFrom(model.graph.initializer[0])
    eye.name = "x"
    del model.graph.input[1]
    return model, lambda: np.array(steps)


def test_a_job_that_times_out_leaves_the_others_alone():
    model, forever = run_spin(10**9)

    async def main():
        with Engine(model, None, scheduler="multi_stream") as engine:
            jobs = Jobs(engine, concurrency=1, timeout=0.1)  # else both wait for one stream
            jobs.put("long", forever)
            jobs.put("short", lambda: np.array(1))
            jobs.queue.put_nowait(END)
            await jobs.worker.work()
        assert jobs.results["long"].error == "took longer than 0.1 s"
        assert jobs.results["short"].outputs[0].shape == (64, 64)

    asyncio.run(main())


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("ending", ["grace", "second signal"])
def test_a_stopped_worker_cancels_jobs_that_do_not_end(ending):
    model, forever = run_spin(10**9)

    async def main():
        with Engine(model, None) as engine:
            grace = 0.05 if ending == "grace" else 3600
            jobs = Jobs(engine, concurrency=2, timeout=3600, grace=grace)
            for name in ("a", "b", "c"):
                jobs.put(name, forever)
            working = asyncio.ensure_future(jobs.worker.work())
            await until(lambda: jobs.queue.qsize() == 1)  # the third's; two are taken
            jobs.worker.stop()
            if ending != "grace":
                jobs.worker.stop()
            await working
            assert {name: result.error for name, result in jobs.results.items()} == {
                "a": "cancelled",
                "b": "cancelled",
            }
            assert jobs.queue.qsize() == 1
            assert engine.run([np.array(1)])[0].shape == (64, 64)

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["grace", "second signal"])
def test_a_stopped_worker_waits_until_results_are_reported(mlp, ending):
    async def main():
        with Engine(mlp) as engine:
            jobs = Jobs(engine, grace=0.0 if ending == "grace" else 3600)
            jobs.broker.clear()
            for number in range(2):
                jobs.put(number, lambda number=number: inputs(number))
            working = asyncio.ensure_future(jobs.worker.work())
            await until(lambda: jobs.num_reporting == 2)
            jobs.worker.stop()
            if ending != "grace":
                jobs.worker.stop()
            for _ in range(100):  # turns of the event loop in which it could give up
                await asyncio.sleep(0)
            assert not working.done()
            jobs.broker.set()
            await working
            for number in range(2):
                expected = engine.run([inputs(number)])[0]
                assert np.array_equal(jobs.results[number].outputs[0], expected)

    asyncio.run(main())


def test_a_job_cancelled_before_it_began_is_reported(mlp):
    async def main():
        with Engine(mlp) as engine:
            jobs = Jobs(engine)
            jobs.worker._start(Job("a", lambda: inputs(1)))
            jobs.worker.stop()
            jobs.worker.stop()
            await jobs.worker.work()
            assert jobs.results["a"].error == "cancelled"

    asyncio.run(main())


@pytest.mark.parametrize("failure", [EOFError("cut"), MemoryError(), zipfile.BadZipFile("PK")])
def test_an_error_in_loading_fails_that_job_alone(mlp, failure):
    def load():
        raise failure

    async def main():
        with Engine(mlp) as engine:
            jobs = Jobs(engine, concurrency=1)
            jobs.put("poison", load)
            jobs.put("good", lambda: inputs(1))
            jobs.queue.put_nowait(END)
            await jobs.worker.work()
        assert jobs.results["poison"].error == (str(failure) or repr(failure))
        assert jobs.results["good"].error is None

    asyncio.run(main())


def test_a_closed_engine_ends_the_work_after_a_report(mlp):
    async def main():
        engine = Engine(mlp)
        engine.close()
        jobs = Jobs(engine, concurrency=1)
        jobs.put("a", lambda: inputs(1))
        with pytest.raises(ClosedError):
            await jobs.worker.work()
        assert "closed" in jobs.results["a"].error

    asyncio.run(main())


def test_a_result_that_cannot_be_reported_ends_the_work(mlp):
    async def main():
        async def lost(result):
            raise BrokenPipeError(result.name)

        with Engine(mlp) as engine:
            jobs = Jobs(engine)
            jobs.worker._on_result = lost
            jobs.put("a", lambda: inputs(1))
            with pytest.raises(BrokenPipeError):
                await jobs.worker.work()

    asyncio.run(main())


def worker_program(*options):
    return start(
        "-m",
        "examples.asyncio_worker",
        *options,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_worker_program_reads_paths_and_ends_on_sigterm(mlp, tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", inputs(number))
    with ended(worker_program("--model", mlp)) as worker:
        (tmp_path / "empty.npy").touch()
        (tmp_path / "zip.npy").write_bytes(HOSTILE_NPY["a zip file"])
        os.mkfifo(tmp_path / "fifo.npy")
        names = ("0.npy", "1.npy", "missing.npy", "2.npy", "empty.npy", "zip.npy", "fifo.npy")
        paths = [str(tmp_path / name) for name in names]
        worker.stdin.write("\n".join(paths) + "\n")
        worker.stdin.flush()
        lines = [json.loads(worker.stdout.readline()) for _ in paths]
        results = {line.pop("job"): line for line in lines}
        assert "No such file" in results[paths[2]]["error"]
        for path in paths[4:6]:
            assert "not an .npy file" in results[path]["error"]
        assert results[paths[6]]["error"] == "not a regular file"
        with Engine(mlp) as engine:
            for number, path in ((0, paths[0]), (1, paths[1]), (2, paths[3])):
                expected = int(np.argmax(engine.run([inputs(number)])[0]))
                assert results[path] == {"class": expected}
        worker.send_signal(signal.SIGTERM)  # stdin is open still: it waits for more
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, out) == (1, "")
        assert "Traceback" not in err
        assert "3 done" in err


@pytest.mark.parametrize("options", [["--model", "missing.onnx"], ["--concurrency", "-1"]])
def test_the_worker_program_exits_with_2_for_bad_arguments(options):
    with ended(worker_program(*options)) as worker:
        out, err = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (2, "")
    assert "Traceback" not in err


def test_the_worker_program_exits_with_3_on_a_full_disk():
    command = ("-m", "examples.asyncio_worker", "--demo", "5")
    with (
        open("/dev/full", "w") as full,
        ended(start(*command, stdout=full, stderr=subprocess.PIPE)) as worker,
    ):
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == 3
    assert "asyncio_worker: cannot write the result of 'demo " in err
    assert "Traceback" not in err


def test_the_worker_program_does_its_demo():
    with ended(worker_program("--demo", "5")) as worker:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
        assert {json.loads(line)["job"] for line in out.splitlines()} == {
            f"demo {index}" for index in range(5)
        }


# --- batch_folder ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Ten files, one of them cut off, one that does not fit, and one that says it is huge; and what
    is no input."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        np.save(source / f"{number}.npy", inputs(number))
    whole = (source / "3.npy").read_bytes()
    (source / "3.npy").write_bytes(whole[:-1])
    np.save(source / "5.npy", inputs(5, 65))
    (source / "6.npy").write_bytes(whole.replace(b"(1, 64)", b"(999999999999, 9)")[: len(whole)])
    (source / "notes.txt").write_text("not an input")
    (source / "folder.npy").mkdir()
    os.mkfifo(source / "fifo.npy")
    np.save(source / f"{LONG}.npy", inputs(9))
    return source


LONG = "x" * 248
DAMAGED = {"3.npy", "5.npy", "6.npy", "folder.npy", "fifo.npy", "notes.txt", f"{LONG}.npy"}


def saved(engine, target, number):
    array = np.load(target / f"{number}.npy.npy")
    return np.array_equal(array, engine.run([inputs(number)])[0])


def test_a_batch_job_names_the_files_that_fail(mlp, folder, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    reports = {}

    def report(path, error):
        assert path.name not in reports
        reports[path.name] = error

    with Engine(mlp, scheduler="multi_stream") as engine:
        files = batch_folder.find_work(folder.iterdir(), target)
        batch_folder.process(engine, files, target, report)
        good = set(range(10)) - {3, 5, 6}
        assert all(saved(engine, target, number) for number in good)
    assert {path.name for path in target.iterdir()} == {f"{number}.npy.npy" for number in good}
    assert {name for name, error in reports.items() if error} == DAMAGED
    assert len(reports) == 14
    assert reports["fifo.npy"] == "not a regular file"
    assert "more than 255 bytes" in reports[f"{LONG}.npy"]


def test_a_batch_job_survives_a_failing_run(tmp_path):
    model = models.gather()
    x = model.graph.initializer.add()
    x.CopyFrom(models.onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "x"))
    del model.graph.input[0]
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.array([7 if number == 2 else number % 4]))
    target = tmp_path / "target"
    target.mkdir()
    reports = {}
    with Engine(model, None, scheduler="multi_stream") as engine:
        files = batch_folder.find_work(tmp_path.glob("*.npy"), target)
        batch_folder.process(engine, files, target, reports.__setitem__)
    assert {path.stem for path, error in reports.items() if error} == {"2"}
    for number in set(range(8)) - {2}:
        assert np.load(target / f"{number}.npy.npy").tolist() == [number % 4]


def batch(*options, **popen):
    return start(
        "-m",
        "examples.batch_folder",
        *map(str, options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **popen,
    )


def waiting_batch(where, *options, **popen):
    """Code before the program runs, in which `wait` says so on stdout and waits for a line."""
    code = """
        import os, sys
        import numpy as np
        from examples import batch_folder

        def wait():
            print("waits", flush=True)
            sys.stdin.readline()
        """
    end = "sys.exit(batch_folder.main())"
    return start(
        "-c",
        "\n".join(map(textwrap.dedent, (code, where, end))),
        *map(str, options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **popen,
    )


AT_8 = """
    read = batch_folder.read_npy
    batch_folder.read_npy = lambda path: (path.name == "8.npy" and wait(), read(path))[1]
"""
AT_SYNC = """
    fsync = os.fsync
    def wait_once(descriptor):
        os.fsync = fsync
        wait()
        fsync(descriptor)
    os.fsync = wait_once
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_batch_job_resumes_where_it_was(mlp, folder, tmp_path, number):
    target = tmp_path / "target"
    with ended(waiting_batch(AT_8, folder, target, "--model", mlp, "--in-flight", "2")) as job:
        assert job.stdout.readline() == "waits\n"
        job.send_signal(number)
        out, err = job.communicate(timeout=60)
        assert (job.returncode, out) == (130, ""), err
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert {f"{number}.npy.npy" for number in (0, 1, 2, 4)} <= set(before)
    assert "9.npy.npy" not in before
    with ended(batch(folder, target, "--model", mlp)) as job:
        out, err = job.communicate(timeout=60)
        assert job.returncode == 1, err
    assert out == f"{7 - len(before)} done, 7 left out, {len(before)} done before\n"
    assert all(name in err for name in DAMAGED)
    after = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert before.items() <= after.items()
    with Engine(mlp) as engine:
        assert all(saved(engine, target, number) for number in set(range(10)) - {3, 5, 6})


def test_a_second_run_of_the_batch_demo_has_nothing_left(tmp_path):
    source, target = tmp_path / "pictures", tmp_path / "results"
    for options, said in (
        ((source, "--demo", 4), ""),
        ((source, target), "4 done, 0 left out, 0 done before\n"),
        ((source, target), "0 done, 0 left out, 4 done before\n"),
    ):
        with ended(batch(*options)) as job:
            out, err = job.communicate(timeout=60)
            assert (job.returncode, out) == (0, said), err


def test_an_unfit_file_does_not_interrupt_the_others(mlp, folder, tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    reports = {}
    with Engine(mlp, scheduler="multi_stream") as engine:
        maps = []
        run_map = engine.map
        monkeypatch.setattr(engine, "map", lambda *args: maps.append(args) or run_map(*args))
        files = batch_folder.find_work(folder.iterdir(), target)
        batch_folder.process(engine, files, target, reports.__setitem__)
        assert len(maps) == 1
    errors = {path.name: error for path, error in reports.items() if error}
    assert set(errors) == DAMAGED
    assert errors["5.npy"] == "expected float32 of shape [1, 64], got float32 of (1, 65)"


def test_no_two_files_have_one_result(tmp_path):
    names = ("a.png", "a.npy", "a.png.npy", "a.jpg", "a.npy.npy")
    results = {batch_folder.result_of(tmp_path / name, tmp_path) for name in names}
    assert len(results) == len(names)


def test_a_batch_job_into_its_own_source_is_refused(mlp, folder):
    (folder.parent / "link").symlink_to(folder)
    for target in (folder, folder.parent / "link"):
        with ended(batch(folder, target, "--model", mlp)) as job:
            out, err = job.communicate(timeout=60)
            assert (job.returncode, out) == (2, "")
            assert "source and target are one folder" in err


def test_a_result_is_synced_before_its_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("sync", Path(path).name, os.stat(descriptor).st_size > 100))
        fsync(descriptor)

    def noting_replace(source, target):
        calls.append(("rename", source.name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    batch_folder.save(tmp_path / "a.npy", np.zeros(8))
    (_, name, is_whole), renamed = calls
    assert is_whole
    assert renamed == ("rename", name)
    batch_folder.sync_names(tmp_path)
    assert calls[2][:2] == ("sync", tmp_path.name)


NAMESPACES = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture
def container():
    """Makes `start` run a program as process 1 of a PID namespace, under this host's name."""
    if not shutil.which("unshare"):
        pytest.skip("there is no `unshare` (util-linux)")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("`unshare --pid` needs root")
    return {"before": NAMESPACES}


@pytest.mark.parametrize("first", ["process 1", "a process of the host"])
def test_jobs_in_containers_do_not_share_unfinished_files(mlp, tmp_path, container, first):
    sources = [tmp_path / name for name in ("a", "b")]
    target = tmp_path / "target"
    for part, source in enumerate(sources):
        source.mkdir()
        for number in range(10):
            np.save(source / f"{part}{number}.npy", inputs(10 * part + number))
    with ended(
        waiting_batch(
            AT_SYNC,
            sources[0],
            target,
            "--model",
            mlp,
            **(container if first == "process 1" else {}),
        )
    ) as job:
        assert job.stdout.readline() == "waits\n"  # has written its first result, not renamed it
        with ended(batch(sources[1], target, "--model", mlp, **container)) as other:
            out, err = other.communicate(timeout=60)
            assert (other.returncode, out) == (0, "10 done, 0 left out, 0 done before\n"), err
        out, err = job.communicate("\n", timeout=60)
        assert (job.returncode, out) == (0, "10 done, 0 left out, 0 done before\n"), err
    with Engine(mlp) as engine:
        for number in range(20):
            array = np.load(target / f"{number:02}.npy.npy")
            assert np.array_equal(array, engine.run([inputs(number)])[0])
    assert len(list(target.iterdir())) == 20


def test_what_killed_jobs_left_is_removed_in_a_container_too(mlp, folder, tmp_path, container):
    target = tmp_path / "target"
    with ended(waiting_batch(AT_SYNC, folder, target, "--model", mlp, **container)) as job:
        assert job.stdout.readline() == "waits\n"
    (left,) = target.iterdir()  # by process 1 of a host with this name
    with ended(waiting_batch(AT_SYNC, folder, target, "--model", mlp)) as living:
        assert living.stdout.readline() == "waits\n"
        assert not left.exists()
        (growing,) = target.glob(f"{batch_folder.UNFINISHED}*")
        with ended(batch(folder, target, "--model", mlp, **container)) as job:
            job.communicate(timeout=60)
        assert growing.exists()
        living.communicate("\n", timeout=60)
        assert living.returncode == 1
    assert not list(target.glob(f"{batch_folder.UNFINISHED}*"))


def test_a_result_taken_for_a_dead_jobs_is_written_again(tmp_path, monkeypatch):
    fsync = os.fsync

    def take_once(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        (unfinished,) = tmp_path.iterdir()
        unfinished.unlink()

    monkeypatch.setattr(os, "fsync", take_once)
    batch_folder.save(tmp_path / "a.npy", np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_result_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        batch_folder.save(tmp_path / "a.npy", np.arange(3))
    finally:
        os.umask(before)
    assert (tmp_path / "a.npy").stat().st_mode & 0o777 == 0o640


def test_images_without_pillow_are_named_and_counted(colour, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(source / f"{number}.png")
    no_pillow = "sys.modules['PIL'] = None"
    with ended(waiting_batch(no_pillow, source, target, "--model", colour)) as job:
        out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (1, "0 done, 3 left out, 0 done before\n")
    assert all(f"{number}.png': images need Pillow" in err for number in range(3))


@pytest.mark.parametrize("options", [[], ["--in-flight", "0"]])
def test_a_mistyped_argument_makes_no_folder(mlp, folder, tmp_path, options):
    source = folder if options else tmp_path / "sources"
    target = tmp_path / "target"
    with ended(batch(source, target, "--model", mlp, *options)) as job:
        out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (2, "")
    assert "Traceback" not in err
    assert not target.exists()


def test_a_target_inside_the_source_is_no_input(mlp, folder):
    with ended(batch(folder, folder / "results", "--model", mlp)) as job:
        out, _ = job.communicate(timeout=60)
    with ended(batch(folder, folder / "results", "--model", mlp)) as job:
        out, err = job.communicate(timeout=60)
    assert out == "0 done, 7 left out, 7 done before\n"
    assert "results" not in err


def test_names_reach_the_terminal_escaped_and_whole(mlp, tmp_path):
    source = tmp_path / "[" / "red]"  # and so the path has "[/red]", an end without a begin
    source.mkdir(parents=True)
    names = ("\x1b]0;title\x07.npy", "[b].npy", os.fsdecode(b"\xff.npy"), "y" * 200 + ".npy")
    for name in names:
        (source / name).touch()
    with ended(batch(source, tmp_path / "target", "--model", mlp)) as job:
        out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (1, "0 done, 4 left out, 0 done before\n"), err
    assert "\x1b]0;" not in err
    for shown in (r"\x1b]0;title\x07.npy", "[b].npy", r"\udcff.npy", names[3]):
        assert shown in err


def test_a_full_disk_has_an_exit_code_of_its_own(mlp, folder, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "target"
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sys, "argv", ["batch_folder", str(folder), str(target), "--model", mlp])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert batch_folder.main() == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "cannot write" in (err := capsys.readouterr().err)
    assert "No space left on device" in err
    assert not list(target.iterdir())


@pytest.fixture
def colour(tmp_path):
    """A model that says how red, green and blue a picture is."""
    mean = models.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    model = models.make([mean], [models.tensor("x", [1, 3, 8, 8])], [models.tensor("y", [1, 3])])
    return models.save(model, tmp_path)


def test_a_batch_job_takes_images(colour, tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    reports = {}
    with Engine(colour) as engine:
        files = batch_folder.find_work(tmp_path.glob("*[gd]"), tmp_path)
        batch_folder.process(
            engine, files, tmp_path, lambda path, error: reports.update({path.name: error})
        )
    assert np.load(tmp_path / "red.png.npy").tolist() == [[1, 0, 0]]
    assert {name for name, error in reports.items() if error} == {"damaged.jpg"}


def test_the_application_takes_images_where_pillow_is(colour, monkeypatch):
    file = io.BytesIO()
    Image.new("L", (30, 20), 255).save(file, "png")
    headers = {"content-type": "image/png"}

    async def main():
        async with client_of(fastapi_app.create_app(colour, timeout=60)) as client:
            answer = await client.post("/predict", content=file.getvalue(), headers=headers)
            assert answer.json() == {"outputs": {"y": [[1, 1, 1]]}}
            answer = await client.post("/predict", content=b"no image", headers=headers)
            assert answer.status_code == 422
            monkeypatch.setitem(sys.modules, "PIL", None)
            answer = await client.post("/predict", content=file.getvalue(), headers=headers)
            assert (answer.status_code, "Pillow" in answer.text) == (415, True)

    asyncio.run(main())
