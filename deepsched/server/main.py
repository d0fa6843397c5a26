"""One process, one event loop: a server from its start to its stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import uvloop

from deepsched.server import observers
from deepsched.server.access import Access
from deepsched.server.assembly import Assembly
from deepsched.server.grpc_server import GrpcServer
from deepsched.server.http_server import HttpServer
from deepsched.server.memory import keep_freed_memory
from deepsched.server.repository import LoadError, Repository, Streams, Watcher
from deepsched.server.server import Server
from deepsched.server.stopping import StopSignals, close, stop

logger = logging.getLogger("deepsched.server")


class Serving(NamedTuple):
    """A server that answers."""

    server: Server
    http: tuple[str, int]
    """Host and port of REST."""
    grpc: tuple[str, int]
    """Host and port of gRPC."""

    @property
    def addresses(self) -> list[str]:
        """As URLs."""
        return [_url("http", self.http), _url("grpc", self.grpc)]


def serve(assembly: Assembly) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code: 0 if every accepted request was
    answered, else 1.

    Raises:
        OptionError: nothing can listen at an address, or an option is not possible.
        LoadError: there is no model that can be served.
    """

    def tell(serving: Serving) -> None:
        print(*serving.addresses, sep="\n", flush=True)

    return serve_until(lambda: StopSignals().requested.wait(), assembly, tell)


def serve_until(
    stop_asked: Callable[[], Awaitable[object]],
    assembly: Assembly,
    on_serving: Callable[[Serving], None],
) -> int:
    """Serves on an event loop of this thread until what `stop_asked` gives is over.

    Args:
        stop_asked: called on that loop before the server listens.
        on_serving: called there once the models have been opened.

    Returns, raises: as `serve`.
    """
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(stop_asked, assembly, on_serving))


async def _serve(
    stop_asked: Callable[[], Awaitable[object]],
    assembly: Assembly,
    on_serving: Callable[[Serving], None],
) -> int:
    settings = assembly.settings
    access = Access(settings)
    streams = Streams(assembly.streams, assembly.own_streams)
    repository = Repository(assembly.sources, streams, assembly.engine)
    server = Server(settings, repository, check_control=access.check)
    code = 2
    try:
        observers.attach(server)
        http, rpc = HttpServer(server), GrpcServer(server)
        stopping = asyncio.ensure_future(stop_asked())
        await http.start()
        await rpc.start()
        serving = Serving(server, http.address, rpc.address)
        logger.info("listening at %s, opening models", " and ".join(serving.addresses))
        opening = asyncio.create_task(_open(assembly, serving, on_serving))
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():  # nothing can be served
            now = asyncio.get_running_loop().time()
            await asyncio.gather(http.close(now), rpc.close(now))
            await opening
        code = 0 if await stop(server, http, rpc) else 1
        opening.cancel()
        return code
    finally:
        await close(server, code)


async def _open(
    assembly: Assembly, serving: Serving, on_serving: Callable[[Serving], None]
) -> None:
    """Opens the models, says that they are, and opens those that come later, until it is
    cancelled."""
    repository = serving.server.repository
    await repository.start()
    if not repository.serving() and not assembly.settings.watch:
        reasons = [f"{it.name}: {it.reason}" for it in repository.index()]
        raise LoadError(f"no model can be served: {'; '.join(reasons) or 'there is none'}")
    on_serving(serving)
    if assembly.settings.watch:
        await Watcher(repository, assembly.sources).run()
    await asyncio.Event().wait()


def _url(scheme: str, address: tuple[str, int]) -> str:
    """
    >>> _url("http", ("::1", 8000))
    'http://[::1]:8000'
    """
    host, port = address
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
