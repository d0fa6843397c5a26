"""The gRPC service, as handlers of raw messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from deepsched.server import grpc_infer, protocol
from deepsched.server.compression import decompressed_message, is_compressed
from deepsched.server.errors import ModelNotFound, RequestError, answer_of
from deepsched.server.grpc_infer import Request
from deepsched.server.grpc_messages import SERVICE, message_class, methods
from deepsched.server.inference import Ended, run_times_ns
from deepsched.server.server import Server

Context: TypeAlias = "grpc.aio.ServicerContext"

# Of one stream: more are read as these are answered.
_MOST_STREAMED = 64

# Of an error's text: what comes with it has to fit into headers.
_MOST_DETAILS = 2000

_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"

_StreamResponse = message_class("ModelStreamInferResponse")


def handlers(service: Service) -> list[grpc.GenericRpcHandler]:
    """What a grpc.aio server is to be given."""
    calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for name, request_class, response_class in methods():
        answer = getattr(service, name, None)
        if answer is not None:
            calls[name] = grpc.unary_unary_rpc_method_handler(
                _unary(service, answer, request_class, response_class)
            )
    calls["ModelInfer"] = grpc.unary_unary_rpc_method_handler(service.infer)
    calls["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(service.stream_infer)
    health = {"Check": grpc.unary_unary_rpc_method_handler(service.check_health)}
    return [
        grpc.method_handlers_generic_handler(SERVICE, calls),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
    ]


def _unary(
    service: Service,
    answer: Callable[[Any, Context], Awaitable[dict[str, Any]]],
    request_class: Any,
    response_class: Any,
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def handle(message: bytes, context: Context) -> bytes:
        try:
            if is_compressed(message):
                message = await service.plain(message)
            try:
                request = request_class.FromString(message)
            except DecodeError as error:
                raise RequestError(f"not a {request_class.DESCRIPTOR.name}: {error}") from None
            response = ParseDict(await answer(request, context), response_class())
            return bytes(response.SerializeToString())
        except Exception as error:
            await _abort(context, error)

    return handle


async def _abort(context: Context, error: Exception) -> Never:
    told = answer_of(error)
    await context.abort(told.grpc_code, told.message[:_MOST_DETAILS])
    raise error  # not reached: abort raises


class Service:
    """The calls of the service by their names there, from a message to a response's fields."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._inference = server.inference
        self._max_bytes = server.settings.max_body_bytes
        self._max_contents = server.settings.max_json_bytes
        self.num_under_way = 0
        """Inferences that were taken and whose answers have not been sent."""

    async def plain(self, message: bytes) -> bytes:
        """A message that is compressed, decompressed.

        Raises:
            RequestError: what it is compressed by cannot be told.
            TooLarge: it has more bytes than a request may have.
        """
        return await decompressed_message(message, self._max_bytes)

    # --- Inference --------------------------------------------------------------------------

    async def infer(self, message: bytes, context: Context) -> bytes:
        if self._server.is_closing.is_set():
            await self._refuse(context)
        self._count(context)
        began_ns = time.monotonic_ns()
        outcome = "done"
        request = None
        try:
            if is_compressed(message):
                message = await self.plain(message)
            request = grpc_infer.parse(message, self._max_contents)
            pieces = await grpc_infer.answer(self._inference, request, context.time_remaining())
            return b"".join(pieces)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = answer_of(error).outcome
            await _abort(context, error)
        finally:
            self._ended(request, outcome, began_ns, context)

    def _count(self, context: Context) -> None:
        self.num_under_way += 1
        context.add_done_callback(self._count_out)

    def _count_out(self, _: Any) -> None:
        self.num_under_way -= 1

    async def _refuse(self, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")

    def _ended(
        self, request: Request | None, outcome: str, began_ns: int, context: Context
    ) -> None:
        if self._inference.on_end is None:
            return
        metadata = dict(context.invocation_metadata() or ())
        self._inference.on_end(
            Ended(
                "" if request is None else request.message.model_name,
                "" if request is None else request.message.model_version,
                "" if request is None else request.message.id,
                "grpc",
                outcome,
                began_ns,
                time.monotonic_ns(),
                context.peer(),
                str(metadata.get("traceparent", "")),
                run_times_ns.get(),
            )
        )

    async def stream_infer(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answers in the order of the requests, which run side by side."""
        under_way: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_MOST_STREAMED)

        async def read() -> None:
            try:
                async for message in messages:
                    task = asyncio.create_task(self._answer_streamed(message, context))
                    await under_way.put(task)
            finally:
                await under_way.put(None)

        self._count(context)
        reader = asyncio.create_task(read())
        closing = asyncio.create_task(self._server.is_closing.wait())
        closing.add_done_callback(lambda _: reader.cancel())
        answering: asyncio.Task[bytes] | None = None
        try:
            while (answering := await under_way.get()) is not None:
                yield await answering
            if self._server.is_closing.is_set():
                await self._refuse(context)
        finally:
            closing.cancel()
            reader.cancel()
            if answering is not None:
                answering.cancel()
            while not under_way.empty():
                left = under_way.get_nowait()
                if left is not None:
                    left.cancel()

    async def _answer_streamed(self, message: bytes, context: Context) -> bytes:
        began_ns = time.monotonic_ns()
        outcome = "done"
        request = None
        try:
            if is_compressed(message):
                message = await self.plain(message)
            request = grpc_infer.parse(message, self._max_contents)
            pieces = await grpc_infer.answer(self._inference, request, context.time_remaining())
            return grpc_infer.streamed(pieces)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            told = answer_of(error)
            outcome = told.outcome
            response = _StreamResponse(error_message=told.message)
            if request is not None:
                response.infer_response.model_name = request.message.model_name
                response.infer_response.id = request.message.id
            return bytes(response.SerializeToString())
        finally:
            self._ended(request, outcome, began_ns, context)

    # --- Health and metadata ----------------------------------------------------------------

    async def check_health(self, message: bytes, context: Context) -> bytes:
        return _SERVING if self._server.is_ready else _NOT_SERVING

    async def ServerLive(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return {"live": True}

    async def ServerReady(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return {"ready": self._server.is_ready}

    async def ModelReady(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        try:
            is_ready = protocol.is_model_ready(self._server, request.name, request.version)
        except ModelNotFound:
            is_ready = False
        return {"ready": is_ready}

    async def ServerMetadata(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return protocol.server_metadata()

    async def ModelMetadata(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return protocol.model_metadata(self._server, request.name, request.version)

    async def ModelConfig(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        self._check_control(context)
        version = self._server.repository.get(request.name, request.version)
        return {"config": version.config()}

    async def ModelStatistics(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return protocol.statistics(self._server, request.name, request.version)

    # --- The repository ---------------------------------------------------------------------

    async def RepositoryIndex(self, request: Any, context: Context) -> dict[str, Any]:  # noqa: N802
        return {"models": protocol.index(self._server, request.ready)}

    async def RepositoryModelLoad(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        self._check_control(context)
        parameters = grpc_infer.parameters_of(request)
        await self._server.repository.load(request.model_name, parameters)
        return {}

    async def RepositoryModelUnload(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        self._check_control(context)
        parameters = grpc_infer.parameters_of(request)
        await self._server.repository.unload(request.model_name, parameters)
        return {}

    def _check_control(self, context: Context) -> None:
        headers = {
            str(name): value if isinstance(value, str) else value.decode("latin-1")
            for name, value in context.invocation_metadata() or ()
        }
        self._server.check_control(headers)

    # --- Shared memory ----------------------------------------------------------------------

    async def SystemSharedMemoryStatus(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        self._check_control(context)
        regions = protocol.regions(self._server, request.name)
        return {"regions": {region["name"]: region for region in regions}}

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        self._check_control(context)
        self._server.regions.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        self._check_control(context)
        self._server.regions.unregister(request.name)
        return {}

    async def CudaSharedMemoryStatus(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        return {}

    async def CudaSharedMemoryUnregister(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        return {}

    async def CudaSharedMemoryRegister(  # noqa: N802
        self, request: Any, context: Context
    ) -> dict[str, Any]:
        raise RequestError("this server uses no GPU; register system shared memory")
