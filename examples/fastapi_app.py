"""A model behind HTTP: FastAPI, one engine, no threads of our own.

    pip install -e '.[examples]'
    uvicorn examples.fastapi_app:app
    python -c "import numpy as np; np.save('x.npy', np.zeros((1, 3, 224, 224), 'float32'))"
    curl -H 'content-type: application/x-npy' --data-binary @x.npy localhost:8000/predict

POST /predict takes an array as .npy, inputs as JSON (`{"inputs": {"name": [...]}}`), or an image
(with Pillow); it answers in JSON, or in .npy to `accept: application/x-npy`. GET /model describes
its inputs and outputs, GET /stats returns `context.stats()` and the requests under way.

Under overload a request gets 503 and Retry-After, if possible before its body is read: when too
many are decoded and run, or bodies hold too many bytes. Memory is counted as bytes arrive and a
place in the queue is taken when the body is complete, so clients that announce much and send
nothing take nothing from others. A body that stalls gets 408. A request that is not answered within
TIMEOUT seconds gets 504, whether the time went into a slow body, decoding or the model. A body that
is too long gets 413, inputs that cannot be read or do not fit 422, and outputs that JSON cannot
express (NaN) 406.

How many connections there may be, in all and for each client, is for the proxy in front to limit;
so are clients that read their answers slowly.

Environment: MODEL, a path (SqueezeNet of the onnx wheel unless given); TIMEOUT, seconds for each
request (1); QUEUE, how many may wait (64); SCHEDULER (elastic).

One process is enough for all cores: the GIL is not held while the model runs. If decoding in Python
takes long, start several with `uvicorn --workers 4`: each leases an equal share of the cores.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from deepsched import Context, Engine
from deepsched.benchmark import bundled_model
from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, InputError, QueueFull
from examples.decoding import decode_image, view_npy

NPY = "application/x-npy"
JSON = "application/json"

MOST_BYTES = 32 * 2**20
"""Of a request's body."""

MOST_JSON_BYTES = 4 * 2**20
"""Of one in JSON: parsing it is one call that keeps the GIL, and so the event loop, for 0.1 s, and
makes Python objects of eight times the size. Larger arrays had better come as .npy."""

MOST_BYTES_UNDER_WAY = 256 * 2**20
"""Of the bodies of all requests, as far as they have arrived. Beside them are the objects of what
is being decoded, and the server's buffer of each connection (64 KiB with uvicorn)."""

MOST_STALL = 1.0
"""Seconds in which a body must end, or LEAST_PROGRESS more bytes of it arrive."""

LEAST_PROGRESS = 64 * 2**10
"""Bytes. A bound on the time between two bytes alone would let a client send one at a time."""

MOST_DECODERS = 4
"""Threads that parse and decode. More would wait for the GIL, and take memory for an image each."""

T = TypeVar("T")


def create_app(
    model: str | None = None,
    timeout: float = 1.0,
    queue_capacity: int = 64,
    scheduler: str = "elastic",
) -> FastAPI:
    """The application; its engine is created when it starts, in the process that serves."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Here, not at import: an engine does not survive a fork, and importing should cost nothing.
        # uvicorn waits for the requests under way before it leaves this block.
        with (
            Context(scheduler=scheduler, queue_capacity=queue_capacity) as context,
            Engine(model or bundled_model("squeezenet"), context=context) as engine,
            ThreadPoolExecutor(min(engine.num_cores, MOST_DECODERS)) as decoders,
        ):
            with suppress(InferenceError):  # made-up inputs do not suit every model
                engine.run(engine.generate_random_inputs())  # the first run is the slowest
            app.state.service = Service(engine, decoders, timeout, queue_capacity)
            yield

    app = FastAPI(title="deepsched example", lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        service: Service = app.state.service
        return await service.predict(request)

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
        return {
            "under_way": service.num_under_way,
            "bytes_under_way": service.bytes_under_way,
            **counts,
        }

    for error, status in (
        (InputError, 422),
        (TooLarge, 413),
        (UnknownType, 415),
        (NotJson, 406),
        (ClientDisconnect, 400),  # which nobody hears
        (SlowBody, 408),
        (QueueFull, 503),
        (ClosedError, 503),
        (DeadlineExceeded, 504),
        (InferenceError, 500),
    ):
        app.add_exception_handler(error, _answer_with(status))
    return app


class Service:
    """What is between HTTP and the engine."""

    def __init__(
        self, engine: Engine, decoders: ThreadPoolExecutor, timeout: float, queue_capacity: int
    ) -> None:
        self.engine = engine
        self.timeout = timeout
        self.most_under_way = engine.num_streams + queue_capacity
        self.num_under_way = 0
        self.bytes_under_way = 0
        self._decoders = decoders

    async def predict(self, request: Request) -> Response:
        """One request, from its body to its answer."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        announced, most_bytes = self._length(request, kind)
        self._check_queue()
        self._check_bytes(announced)
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout) as limit:
                await self._read(request, most_bytes, body)
                with self._admitted():
                    inputs = await self._decode(kind, body)
                    # The engine knows the deadline too: what passes it in the queue is never run.
                    rest = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                    outputs = await self.engine.run_async(inputs, timeout=max(0.0, rest))
                    return await self._answer(outputs, request.headers.get("accept", ""))
        except TimeoutError:
            raise DeadlineExceeded(f"took longer than {self.timeout:g} s") from None
        finally:
            self.bytes_under_way -= len(body)

    async def _read(self, request: Request, most_bytes: int, body: bytearray) -> None:
        """Appends to `body` what arrives, and counts it."""
        try:
            async with asyncio.timeout(MOST_STALL) as limit:
                enough = LEAST_PROGRESS
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most_bytes:
                        raise TooLarge(f"the body holds more than {most_bytes} bytes")
                    self._check_bytes(len(chunk))
                    body += chunk
                    self.bytes_under_way += len(chunk)
                    if len(body) >= enough:
                        enough = len(body) + LEAST_PROGRESS
                        limit.reschedule(asyncio.get_running_loop().time() + MOST_STALL)
        except TimeoutError:
            raise SlowBody(
                f"of the body less than {LEAST_PROGRESS} bytes came in {MOST_STALL:g} s"
            ) from None

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Counts a request as under way, or refuses it at once.

        `run_async` would wait where the queue is full. A server had better refuse: who waits longer
        than his own timeout only adds to the crowd. All of it is on one event loop, so that plain
        numbers count what is under way.
        """
        self._check_queue()
        self.num_under_way += 1
        try:
            yield
        finally:
            self.num_under_way -= 1

    def _check_queue(self) -> None:
        if self.num_under_way >= self.most_under_way:
            raise QueueFull(f"{self.num_under_way} requests are under way; try again later")

    def _check_bytes(self, more: int) -> None:
        if self.bytes_under_way + more > MOST_BYTES_UNDER_WAY:
            raise QueueFull(f"{self.bytes_under_way} bytes are under way; try again later")

    @property
    def retry_after(self) -> int:
        """Seconds after which nothing of what is under way now still is."""
        return max(1, math.ceil(self.timeout))

    @staticmethod
    def _length(request: Request, kind: str) -> tuple[int, int]:
        """Bytes that the body announces, 0 where it does not; and as many as it may have."""
        if kind != NPY and kind != JSON and not kind.startswith("image/"):
            raise UnknownType(f"expected {NPY}, {JSON} or an image, got {kind!r}")
        most = MOST_JSON_BYTES if kind == JSON else MOST_BYTES
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or len(length) > 18:
            return 0, most
        if int(length) > most:
            raise TooLarge(f"a body of {kind} holds {most} bytes at most, not {length}")
        return int(length), most

    async def _decode(self, kind: str, body: bytearray) -> list[Any]:
        """The body, as the engine takes it."""
        if kind == NPY:
            return [view_npy(body)]
        if kind == JSON:
            return await self._in_thread(self._parse_json, body)
        return await self._in_thread(self._decode_image, body)

    async def _in_thread(self, function: Callable[[Any], T], argument: Any) -> T:
        """For what takes milliseconds of Python, so that others are served meanwhile.

        At the deadline, a call that waits for a thread is dropped. One that has begun goes on, but
        is not waited for.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, function, argument)

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
        except Exception as error:  # ValueError, RecursionError, MemoryError and more
            raise InputError(f'expected {{"inputs": {{name: values}}}}: {error!r}') from None

    def _decode_image(self, body: bytearray) -> list[Any]:
        try:
            return [decode_image(io.BytesIO(body), self.engine.input_shapes[0])]
        except ImportError:
            raise UnknownType("images need Pillow on the server") from None

    async def _answer(self, outputs: list[Any], accept: str) -> Response:
        """As JSON, or the first output alone as .npy."""
        if NPY in accept:
            file = io.BytesIO()
            np.save(file, outputs[0])
            return Response(file.getvalue(), media_type=NPY)
        text = await self._in_thread(self._to_json, outputs)
        return Response(text, media_type=JSON)

    def _to_json(self, outputs: list[Any]) -> str:
        values = (output.tolist() if hasattr(output, "tolist") else output for output in outputs)
        named = dict(zip(self.engine.output_names, values, strict=True))
        try:
            return json.dumps({"outputs": named}, allow_nan=False)
        except ValueError:
            raise NotJson(f"an output holds NaN or infinity; accept {NPY} to get it") from None


class TooLarge(ValueError):
    """More bytes than a request may have."""


class SlowBody(ValueError):
    """A body that stalls."""


class UnknownType(ValueError):
    """A body that nobody here can read."""


class NotJson(ValueError):
    """Outputs with numbers that JSON does not have."""


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
        if status == 408:
            headers["connection"] = "close"  # or it may send the rest as slowly
        return JSONResponse({"detail": str(error)}, status, headers)

    return answer


app = create_app(
    os.environ.get("MODEL"),
    float(os.environ.get("TIMEOUT", "1")),
    int(os.environ.get("QUEUE", "64")),
    os.environ.get("SCHEDULER", "elastic"),
)
