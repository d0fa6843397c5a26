"""One process, one event loop: HTTP and gRPC, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import Iterator

import grpc
import uvicorn
import uvloop

from deepsched.errors import OptionError
from deepsched.server import grpc_service, observers
from deepsched.server.app import create_app
from deepsched.server.http_infer import HttpInference
from deepsched.server.http_protocol import Connection
from deepsched.server.memory import keep_freed_memory
from deepsched.server.repository import Repository
from deepsched.server.server import Server
from deepsched.server.settings import Settings

logger = logging.getLogger("deepsched.server")

# Between two looks at how long connections have been at what they do.
_CHECK_S = 0.5


def serve(settings: Settings, repository: Repository) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        OptionError: an address cannot be listened at.
        DeepschedError: a model cannot be opened.
    """
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, repository))


async def _serve(settings: Settings, repository: Repository) -> None:
    server = Server(settings, repository)
    observers.attach(server)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    http = _Http(_http_config(server))
    rpc, grpc_port = _grpc_server(server)
    try:
        await rpc.start()
        serving = asyncio.create_task(http.serve())
        checking = asyncio.create_task(_check_connections(http))
        while not http.started and not serving.done():
            await asyncio.sleep(0.01)
        await repository.start()
        for address in (*http.addresses(), f"grpc://{settings.host}:{grpc_port}"):
            print(address, flush=True)
        await stop.wait()
        server.is_stopping = True
        http.should_exit = True
        for call in server.on_stop:
            call()
        await asyncio.gather(serving, rpc.stop(30))
        checking.cancel()
    finally:
        await repository.close()
        for call in server.on_answered:
            call()


class _Http(uvicorn.Server):
    """Signals are not its business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def addresses(self) -> list[str]:
        """What to tell a user."""
        return [
            f"http://{host}:{port}"
            for server in self.servers
            for host, port, *_ in (socket.getsockname() for socket in server.sockets)
        ]


def _http_config(server: Server) -> uvicorn.Config:
    settings = server.settings
    return uvicorn.Config(
        create_app(server),
        host=settings.host,
        port=settings.port,
        http=functools.partial(Connection, HttpInference(server)),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.keep_alive),
    )


def _grpc_server(server: Server) -> tuple[grpc.aio.Server, int]:
    settings = server.settings
    rpc = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=settings.max_grpc_requests,
    )
    rpc.add_generic_rpc_handlers(grpc_service.handlers(server))
    address = f"{settings.host}:{settings.grpc_port}"
    try:
        port = rpc.add_insecure_port(address)
    except RuntimeError as error:
        raise OptionError(f"grpc_port: nothing can listen at {address}: {error}") from None
    return rpc, port


async def _check_connections(http: uvicorn.Server) -> None:
    while True:
        await asyncio.sleep(_CHECK_S)
        now = time.monotonic()
        for connection in list(http.server_state.connections):
            if isinstance(connection, Connection):
                connection.check_time(now)
