"""A model behind HTTP: FastAPI, one engine, no threads of our own.

    pip install -e '.[examples]'
    uvicorn examples.fastapi_app:app
    python -c "import numpy as np; np.save('x.npy', np.zeros((1, 3, 224, 224), 'float32'))"
    curl -H 'content-type: application/x-npy' --data-binary @x.npy localhost:8000/predict

POST /predict takes an array as .npy, inputs as JSON (`{"inputs": {"name": [...]}}`), or an image
(with Pillow); it answers in JSON, or in .npy to `accept: application/x-npy`. GET /model tells what
the model takes, GET /stats how it goes. Too many requests get 503 and Retry-After, late ones 504,
inputs that do not fit 422.

Environment: MODEL, a path (SqueezeNet of the onnx wheel unless given); TIMEOUT, seconds for each
request (1); QUEUE, how many may wait (64); SCHEDULER (elastic).

One process is enough for all cores: the GIL is not held while the model runs. If decoding in Python
takes long, start several with WEB_CONCURRENCY=4 (not with --workers): each takes a share of the
cores of its own, instead of all of them taking all.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from deepsched import Context, Engine, Topology, partition
from deepsched.benchmark import bundled_model
from deepsched.errors import ClosedError, DeadlineExceeded, InputError, QueueFull

NPY = "application/x-npy"
MOST_BYTES = 32 * 2**20
"""Of a request's body."""


def create_app(
    model: str | None = None,
    timeout: float = 1.0,
    queue_capacity: int = 64,
    scheduler: str = "elastic",
) -> FastAPI:
    """The application; its engine is made when it starts, in the process that serves."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Here, not at import: an engine does not survive a fork, and importing should cost nothing.
        share = take_share(int(os.environ.get("WEB_CONCURRENCY", "1")))
        with (
            Context(scheduler=scheduler, queue_capacity=queue_capacity) as context,
            Engine(model or bundled_model("squeezenet"), context=context) as engine,
        ):
            engine.run(engine.generate_random_inputs())  # the first run is the slowest
            app.state.service = Service(engine, timeout, queue_capacity)
            yield
        # uvicorn has waited for the requests under way; leaving the block frees the rest.
        if share is not None:
            share.close()

    app = FastAPI(title="deepsched example", lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        service: Service = app.state.service
        inputs = await service.read_inputs(request)
        outputs = await service.run(inputs)
        return await service.answer(outputs, request.headers.get("accept", ""))

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        engine = app.state.service.engine
        return {
            "inputs": _described(engine.input_names, engine.input_shapes, engine.input_dtypes),
            "outputs": _described(engine.output_names, engine.output_shapes, engine.output_dtypes),
        }

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        service: Service = app.state.service
        counts = dataclasses.asdict(service.engine.context.stats())
        return {"under_way": service.num_under_way, **counts}

    for error, status in (
        (InputError, 422),
        (TooLarge, 413),
        (UnknownType, 415),
        (QueueFull, 503),
        (ClosedError, 503),
        (DeadlineExceeded, 504),
    ):
        app.add_exception_handler(error, _answer_with(status))
    return app


class Service:
    """What is between HTTP and the engine."""

    def __init__(self, engine: Engine, timeout: float, queue_capacity: int) -> None:
        self.engine = engine
        self.timeout = timeout
        self.most_under_way = engine.num_streams + queue_capacity
        self.num_under_way = 0

    async def run(self, inputs: list[Any]) -> list[Any]:
        """The model's outputs.

        `run_async` would wait where the queue is full. A server had better refuse: who waits
        longer than his own timeout only adds to the crowd. All of it is on one event loop, so
        that a plain number counts what is under way.
        """
        if self.num_under_way >= self.most_under_way:
            raise QueueFull(f"{self.num_under_way} requests are under way; try again later")
        self.num_under_way += 1
        try:
            return await self.engine.run_async(inputs, timeout=self.timeout)
        finally:
            self.num_under_way -= 1

    @property
    def retry_after(self) -> int:
        """Seconds after which nothing of what is under way now still is."""
        return max(1, math.ceil(self.timeout))

    async def read_inputs(self, request: Request) -> list[Any]:
        """The body, as the engine takes it."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise TooLarge(f"a body holds {MOST_BYTES} bytes at most")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == NPY:
            return [view_npy(body)]
        # These take milliseconds of Python, for which the event loop should not stand still.
        if kind == "application/json":
            return await run_in_threadpool(self._parse_json, body)
        if kind.startswith("image/"):
            return await run_in_threadpool(self._decode_image, body)
        raise UnknownType(f"expected {NPY}, application/json or an image, got {kind!r}")

    def _parse_json(self, body: bytearray) -> list[Any]:
        engine = self.engine
        try:
            given = json.loads(body)["inputs"]
            if not isinstance(given, dict):
                given = dict(zip(engine.input_names, given, strict=True))
            if set(given) != set(engine.input_names):
                raise ValueError(f"expected {engine.input_names}, got {list(given)}")
            return [
                np.asarray(given[name], dtype)
                for name, dtype in zip(engine.input_names, engine.input_dtypes, strict=True)
            ]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f'expected {{"inputs": {{name: values}}}}: {error!r}') from None

    def _decode_image(self, body: bytearray) -> list[Any]:
        """RGB, as large as the model takes it, from 0 to 1. What a model was trained on decides;
        change it to that."""
        try:
            from PIL import Image
        except ImportError:
            raise UnknownType("images need Pillow on the server") from None
        shape = self.engine.input_shapes[0]
        height, width = (size if isinstance(size, int) else 224 for size in shape[-2:])
        try:
            with Image.open(io.BytesIO(body)) as image:
                pixels = np.asarray(image.convert("RGB").resize((width, height)), np.float32)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"not an image that Pillow reads: {error}") from None
        return [np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / 255)]

    async def answer(self, outputs: list[Any], accept: str) -> Response:
        """As JSON, or the first output alone as .npy."""
        if NPY in accept:
            file = io.BytesIO()
            np.save(file, outputs[0])
            return Response(file.getvalue(), media_type=NPY)
        text = await run_in_threadpool(self._to_json, outputs)
        return Response(text, media_type="application/json")

    def _to_json(self, outputs: list[Any]) -> str:
        values = (output.tolist() if hasattr(output, "tolist") else output for output in outputs)
        return json.dumps({"outputs": dict(zip(self.engine.output_names, values, strict=True))})


class TooLarge(ValueError):
    """More bytes than a request may have."""


class UnknownType(ValueError):
    """A body that nobody here can read."""


def view_npy(body: bytearray) -> Any:
    """The array in a .npy file, without copying it.

    >>> file = io.BytesIO()
    >>> np.save(file, np.arange(3))
    >>> view_npy(bytearray(file.getvalue()))
    array([0, 1, 2])
    """
    file = io.BytesIO(memoryview(body)[:_MOST_HEADER])
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("arrays of Python objects are not taken")
        array = np.frombuffer(body, dtype, count=math.prod(shape), offset=file.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, KeyError, OverflowError) as error:
        raise InputError(f"not a .npy file, or a damaged one: {error}") from None


_MOST_HEADER = 16_384


def take_share(num_workers: int) -> socket.socket | None:
    """Gives this worker cores of its own, by its affinity mask, which engines respect.

    A worker's number is the first name that nobody has bound yet, in the kernel's table of
    abstract sockets: they go with their process, so a worker that is started again gets the number
    of the one that died.
    """
    if num_workers < 2:
        return None
    for number, stream in enumerate(partition(Topology.detect(), num_streams=num_workers).streams):
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            taken.bind(f"\0deepsched-example-{os.getppid()}-{number}")
        except OSError:
            taken.close()
            continue
        os.sched_setaffinity(0, {cpu for core in stream.cores for cpu in core.cpus})
        return taken
    raise RuntimeError(f"{num_workers} workers run already")


def _described(names: list[str], shapes: list[Any], dtypes: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": shape, "dtype": str(dtype)}
        for name, shape, dtype in zip(names, shapes, dtypes, strict=True)
    ]


def _answer_with(status: int) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        headers = {}
        if status == 503:
            headers["retry-after"] = str(request.app.state.service.retry_after)
        return JSONResponse({"detail": str(error)}, status, headers)

    return answer


app = create_app(
    os.environ.get("MODEL"),
    float(os.environ.get("TIMEOUT", "1")),
    int(os.environ.get("QUEUE", "64")),
    os.environ.get("SCHEDULER", "elastic"),
)
