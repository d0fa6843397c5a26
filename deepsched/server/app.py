"""The ASGI application: all that is not an inference."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deepsched.errors import DeepschedError
from deepsched.server import live, metrics, rest
from deepsched.server.server import Server


def create_app(server: Server) -> Starlette:
    """The application of `server`; each part gives its routes."""

    async def explain(request: Request, error: Exception) -> Response:
        return rest.error_response(error)

    return Starlette(
        routes=[*rest.routes(server), *metrics.routes(server), *live.routes(server)],
        exception_handlers={
            DeepschedError: explain,
            HTTPException: rest.not_found,
            Exception: explain,
        },
    )
