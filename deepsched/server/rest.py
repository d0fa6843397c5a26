"""REST, all but inferences: health, metadata, statistics, repository, shared memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepsched.server import protocol
from deepsched.server.errors import ModelNotFound, RequestError, TooLarge, answer_of, error_json
from deepsched.server.openapi import description
from deepsched.server.server import Server

# Of a body here: the longest holds a model's configuration.
_MOST_BYTES = 2**20


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, Any] | None = None


class _RegionRequest(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


def json_response(content: Any, status: int = 200) -> Response:
    """`content` as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def error_response(error: Exception) -> Response:
    """An error in the protocol's form."""
    answer = answer_of(error)
    response = Response(
        error_json(answer.message), answer.http_status, media_type="application/json"
    )
    response.raw_headers.extend(answer.headers)
    return response


async def _read(request: Request, kind: Any) -> Any:
    """A body that may be missing."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise TooLarge(f"the body has more than {_MOST_BYTES} bytes")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not of the protocol's form: {error}") from None


def routes(server: Server) -> list[Route]:
    """The routes of v2, and those of v1 but `:predict`."""
    api = _Api(server)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/v2/health/live", api.live),
        ("GET", "/v2/health/ready", api.ready),
        ("GET", "/v2", api.metadata),
        ("GET", "/v2/models/stats", api.statistics),
        ("GET", "/v2/systemsharedmemory/status", api.region_status),
        ("GET", "/v2/systemsharedmemory/region/{region}/status", api.region_status),
        ("POST", "/v2/systemsharedmemory/region/{region}/register", api.register),
        ("POST", "/v2/systemsharedmemory/region/{region}/unregister", api.unregister),
        ("POST", "/v2/systemsharedmemory/unregister", api.unregister),
        ("GET", "/v2/cudasharedmemory/status", api.no_regions),
        ("GET", "/v2/cudasharedmemory/region/{region}/status", api.no_regions),
        ("POST", "/v2/cudasharedmemory/region/{region}/register", api.no_gpu),
        ("POST", "/v2/cudasharedmemory/region/{region}/unregister", api.done),
        ("POST", "/v2/cudasharedmemory/unregister", api.done),
        ("POST", "/v2/repository/index", api.index),
        ("POST", "/v2/repository/models/{model}/load", api.load),
        ("POST", "/v2/repository/models/{model}/unload", api.unload),
        ("GET", "/v1/models", api.v1_models),
        ("POST", "/v1/models/{model}:predict", api.not_here),
        ("POST", "/v1/models/{model}/versions/{version}:predict", api.not_here),
        ("GET", "/v1/models/{model}", api.v1_model),
        ("GET", "/openapi.json", api.openapi),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        table += [
            ("GET", path, api.model_metadata),
            ("POST", f"{path}/infer", api.not_here),
            ("GET", f"{path}/ready", api.model_ready),
            ("GET", f"{path}/config", api.config),
            ("GET", f"{path}/stats", api.statistics),
        ]
    return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]


class _Api:
    def __init__(self, server: Server) -> None:
        self._server = server

    # --- Health and metadata ----------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        is_ready = self._server.is_ready
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        is_ready = protocol.is_model_ready(self._server, name, version)
        return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    async def metadata(self, request: Request) -> Response:
        return json_response(protocol.server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        return json_response(protocol.model_metadata(self._server, *_named(request)))

    async def config(self, request: Request) -> Response:
        self._check_control(request)
        return json_response(self._server.repository.get(*_named(request)).config())

    async def statistics(self, request: Request) -> Response:
        return json_response(protocol.statistics(self._server, *_named(request)))

    async def openapi(self, request: Request) -> Response:
        return json_response(description())

    # --- The repository ---------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        asked = await _read(request, _IndexRequest)
        return json_response(protocol.index(self._server, asked.ready))

    async def load(self, request: Request) -> Response:
        self._check_control(request)
        asked = await _read(request, _LoadRequest)
        await self._server.repository.load(_named(request)[0], asked.parameters or {})
        return json_response({})

    async def unload(self, request: Request) -> Response:
        self._check_control(request)
        asked = await _read(request, _LoadRequest)
        await self._server.repository.unload(_named(request)[0], asked.parameters or {})
        return json_response({})

    def _check_control(self, request: Request) -> None:
        self._server.check_control(request.headers)

    # --- Shared memory ----------------------------------------------------------------------

    async def region_status(self, request: Request) -> Response:
        self._check_control(request)
        name = request.path_params.get("region", "")
        return json_response(protocol.regions(self._server, name))

    async def register(self, request: Request) -> Response:
        self._check_control(request)
        asked = await _read(request, _RegionRequest)
        self._server.regions.register(
            request.path_params["region"], asked.key, asked.offset, asked.byte_size
        )
        return json_response({})

    async def unregister(self, request: Request) -> Response:
        self._check_control(request)
        self._server.regions.unregister(request.path_params.get("region", ""))
        return json_response({})

    async def no_regions(self, request: Request) -> Response:
        return json_response([])

    async def no_gpu(self, request: Request) -> Response:
        raise RequestError("this server uses no GPU; register system shared memory")

    async def not_here(self, request: Request) -> Response:
        """Inferences have a way of their own (http_protocol); here are those whose path is spelt in
        another way, and the answer to other methods."""
        raise ModelNotFound(f"no inference at {request.url.path!r:.200}; spell the path plainly")

    async def done(self, request: Request) -> Response:
        return json_response({})

    # --- The first protocol -----------------------------------------------------------------

    async def v1_models(self, request: Request) -> Response:
        names = dict.fromkeys(version.name for version in self._server.repository.serving())
        return json_response({"models": list(names)})

    async def v1_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        is_ready = protocol.is_model_ready(self._server, name, "")
        return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 503)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


async def not_found(request: Request, error: Exception) -> Response:
    """Of a path that is none of ours, or a method that it does not take."""
    status = getattr(error, "status_code", 404)
    if status == 405:
        response = json_response({"error": f"{request.url.path} does not take this method"}, 405)
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    return error_response(ModelNotFound(f"nothing is at {request.url.path!r:.200}"))
