"""HttpServer: uvicorn, on a socket that is ours, closed without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from deepsched.server.app import create_app
from deepsched.server.http_infer import HttpInference
from deepsched.server.http_protocol import Connection
from deepsched.server.listening import listen, refuse_new
from deepsched.server.server import Server
from deepsched.server.tls import http_options

_CHECK_S = 0.5
"""Between two looks at how long connections have been at what they do."""

_NEXT_REQUEST_S = 0.5
"""How long an open connection may take to send its next request, at the end. It is the last one: so
clients that ask again and again meet no connection that is closed as they send."""

_POLL_S = 0.01


class HttpServer:
    """HTTP/1.1 of a server.

    Raises:
        OptionError: nothing can listen at its address, or its certificate cannot be used.
    """

    def __init__(self, server: Server) -> None:
        settings = server.settings
        config = uvicorn.Config(
            create_app(server),
            http=functools.partial(Connection, HttpInference(server)),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(settings.keep_alive),
            **http_options(settings),
        )
        self._listener = listen(settings.host, settings.port)
        self._uvicorn = _Uvicorn(config, settings.header_timeout)
        self._tasks: list[asyncio.Task[None]] = []
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    async def start(self) -> None:
        """Takes requests from here on."""
        self._tasks = [
            asyncio.create_task(self._uvicorn.serve(sockets=[self._listener])),
            asyncio.create_task(self._check_connections()),
        ]
        while not self._uvicorn.started:
            await asyncio.sleep(_POLL_S)

    @property
    def _connections(self) -> list[Connection]:
        return [it for it in self._uvicorn.server_state.connections if isinstance(it, Connection)]

    async def _check_connections(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            now = time.monotonic()
            for connection in self._connections:
                connection.check_time(now)

    async def close(self, deadline: float) -> None:
        """Takes no new connections, and waits until what was accepted is answered.

        Args:
            deadline: of the event loop's clock; then what is left is cut off.
        """
        loop = asyncio.get_running_loop()
        refuse_new(self._listener)
        until = min(deadline, loop.time() + _NEXT_REQUEST_S)
        await asyncio.sleep(_POLL_S)  # the loop accepts what the kernel has
        while loop.time() < until and any(map(_is_idle, self._connections)):
            await asyncio.sleep(_POLL_S)
        self._uvicorn.config.timeout_graceful_shutdown = max(1, math.ceil(deadline - loop.time()))
        self._uvicorn.should_exit = True
        serving, checking = self._tasks
        await serving
        checking.cancel()
        for connection in self._connections:
            connection.transport.abort()


def _is_idle(connection: Connection) -> bool:
    return connection.cycle is None or connection.cycle.response_complete


class _Uvicorn(uvicorn.Server):
    """Signals are not its business. It knows of a connection once TLS's handshake is done, in
    `handshake_timeout` seconds at most."""

    def __init__(self, config: uvicorn.Config, handshake_timeout: float) -> None:
        super().__init__(config)
        self._handshake_timeout = handshake_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config = self.config
        make = functools.partial(  # type: ignore[call-arg]
            config.http_protocol_class,
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        tls: dict[str, Any] = {}
        if config.ssl is not None:
            tls = {"ssl": config.ssl, "ssl_handshake_timeout": self._handshake_timeout}
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(make, sock=each, backlog=config.backlog, **tls)
            for each in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
