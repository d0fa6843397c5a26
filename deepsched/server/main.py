"""One process, one event loop: a server from its start to its stop."""

from __future__ import annotations

import asyncio
import logging

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


def serve(assembly: Assembly) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code: 0 if every accepted request was
    answered, else 1.

    Raises:
        OptionError: nothing can listen at an address, or an option is not possible.
        LoadError: there is no model that can be served.
    """
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(assembly))


async def _serve(assembly: Assembly) -> int:
    settings = assembly.settings
    access = Access(settings)
    streams = Streams(assembly.streams, assembly.own_streams)
    repository = Repository(assembly.sources, streams, assembly.engine)
    server = Server(settings, repository, check_control=access.check)
    code = 2
    try:
        observers.attach(server)
        http, rpc = HttpServer(server), GrpcServer(server)
        signals = StopSignals()
        await http.start()
        await rpc.start()
        addresses = [
            f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            for scheme, (host, port) in (("http", http.address), ("grpc", rpc.address))
        ]
        logger.info("listening at %s, opening models", " and ".join(addresses))
        serving = asyncio.create_task(_open(assembly, repository, addresses))
        stopping = asyncio.create_task(signals.requested.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():  # nothing can be served
            now = asyncio.get_running_loop().time()
            await asyncio.gather(http.close(now), rpc.close(now))
            await serving
        code = 0 if await stop(server, http, rpc) else 1
        serving.cancel()
        return code
    finally:
        await close(server, code)


async def _open(assembly: Assembly, repository: Repository, addresses: list[str]) -> None:
    """Opens the models, says where they are, and opens those that come later, until it is
    cancelled."""
    await repository.start()
    if not repository.serving() and not assembly.settings.watch:
        reasons = [f"{it.name}: {it.reason}" for it in repository.index()]
        raise LoadError(f"no model can be served: {'; '.join(reasons) or 'there is none'}")
    print(*addresses, sep="\n", flush=True)
    if assembly.settings.watch:
        await Watcher(repository, assembly.sources).run()
    await asyncio.Event().wait()
