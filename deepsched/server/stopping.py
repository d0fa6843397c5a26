"""Stopping: the signals that ask for it, and the order in which a server goes.

    signal ── lame duck ───────────────▶ closing ───────────────────────────▶ closed
              not ready; new requests     no new connections or requests;
              are taken; each answer      what has been accepted is answered
              ends its connection         (at most `grace` seconds)

A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from deepsched.formatting import counted
from deepsched.server.grpc_server import GrpcServer
from deepsched.server.http_server import HttpServer
from deepsched.server.server import Server

logger = logging.getLogger("deepsched.server")


_BEFORE_CUT_S = 0.2
"""From when what is left is counted to when it is cut off."""

_CLOSE_S = 5.0
"""In which engines close if no run is under way."""


class StopSignals:
    """SIGTERM and SIGINT: the first one of them sets `requested`."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        logger.warning(
            "%s: stopping once all requests are answered; another one ends the server at once",
            signal.Signals(number).name,
        )
        # The kernel's own action, since the event loop may hang. But the first process of a
        # container has none: the kernel drops signals that it does not handle.
        action = _leave if os.getpid() == 1 else signal.SIG_DFL
        for each in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(each)
            signal.signal(each, action)
        self.requested.set()


def _leave(number: int, _: object) -> None:
    os._exit(128 + number)


async def stop(server: Server, http: HttpServer, rpc: GrpcServer) -> bool:
    """Lets the server go, as above. Returns whether every accepted request was answered."""
    settings = server.settings
    server.is_stopping = True
    await asyncio.sleep(settings.lame_duck)
    server.is_closing.set()
    for call in server.on_stop:
        call()
    deadline = asyncio.get_running_loop().time() + settings.grace + _BEFORE_CUT_S
    closing = asyncio.gather(http.close(deadline), rpc.close(deadline))
    done, _ = await asyncio.wait([closing], timeout=settings.grace)
    num_left = 0 if done else server.repository.num_under_way
    await closing
    if num_left:
        logger.error(
            "%s not answered within the %g s of --grace",
            counted(num_left, "request"),
            settings.grace,
        )
    return not num_left


async def close(server: Server, code: int) -> None:
    """Closes what is open. Where a run or the opening of a model goes on that nobody waits for any
    more, the process ends with `code` here: neither can be stopped from outside."""
    closing = asyncio.ensure_future(server.repository.close())
    await asyncio.wait([closing], timeout=_CLOSE_S)
    for call in server.on_answered:
        call()
    if not closing.done() or server.repository.is_opening:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    await closing
