"""The page's files, and its events: a hello with what does not change, then a message a second."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from deepsched.machine.diagram import Box, Diagram, build_diagram
from deepsched.machine.inventory import read_machine
from deepsched.machine.partition import Partition
from deepsched.machine.topology import Topology
from deepsched.server.live.feed import Feed
from deepsched.server.live.sampler import WINDOW_S, Sampler
from deepsched.server.repository import Streams
from deepsched.server.server import Server
from deepsched.version import __version__

_MOST_SEND_S = 10.0
"""For which a viewer may leave a message in the socket's buffer."""

_FILES = {
    "/": ("page.html", "text/html"),
    "/live/page.css": ("page.css", "text/css"),
    "/live/page.js": ("page.js", "text/javascript"),
    "/live/lanes.js": ("lanes.js", "text/javascript"),
    "/live/words.js": ("words.js", "text/javascript"),
    "/live/icon.svg": ("icon.svg", "image/svg+xml"),
}

_HEADERS = {
    "cache-control": "no-cache",
    # Nothing from elsewhere, and no script or style that is not one of the files. Widths of bars
    # are set by script, one by one, which this allows.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes(server: Server) -> list[Route]:
    """The page."""
    feed = Feed(Sampler(server))
    server.on_stop.append(feed.close)
    folder = resources.files(__package__)

    def file_route(path: str, name: str, media_type: str) -> Route:
        content = folder.joinpath(name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(content, media_type=media_type, headers=_HEADERS)

        return Route(path, answer)

    @functools.cache
    def greeting() -> bytes:
        return hello(server.repository.streams)

    async def events(request: Request) -> Response:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return _EventStream(
            _events(greeting, feed), media_type="text/event-stream", headers=headers
        )

    files = [file_route(path, *file) for path, file in _FILES.items()]
    return [*files, Route("/live/events", events)]


class _EventStream(StreamingResponse):
    """Ends with the connection where the viewer does not read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(_MOST_SEND_S):
                    await send(message)
            except TimeoutError:
                scope["deepsched.connection"].transport.abort()

        await super().__call__(scope, receive, send_in_time)


async def _events(greeting: Callable[[], bytes], feed: Feed) -> AsyncIterator[bytes]:
    if feed.is_full:
        yield b"event: full\ndata: %d\n\n" % feed.num_viewers
        return
    async with feed.viewer() as messages:
        yield b"event: hello\nretry: 2000\ndata: %s\n\n" % greeting()
        async for message in messages:
            yield b"data: %s\n\n" % message
    if feed.is_closed:
        yield b"event: bye\ndata: \n\n"


def hello(streams: Streams) -> bytes:
    """What does not change while the server runs, as JSON."""
    # Numbered through, as lanes are: each context begins at 0.
    lanes = [
        replace(stream, index=index)
        for index, stream in enumerate(it for one in streams.contexts for it in one.streams)
    ]
    topology = Topology.detect()
    machine = read_machine(topology)
    diagram = build_diagram(topology, Partition(tuple(lanes), ()), machine.online, machine.offline)
    return json.dumps(
        {
            "server": __version__,
            "window": WINDOW_S,
            "scheduler": str(streams.shared.scheduler),
            "streams": [
                {
                    "name": f"stream {lane.index}",
                    "cores": ["+".join(map(str, core.cpus)) for core in lane.cores],
                }
                for lane in lanes
            ],
            "machine": _machine(diagram),
        }
    ).encode()


def _machine(diagram: Diagram) -> dict[str, Any]:
    return {"title": diagram.title, "boxes": [_box(box) for box in diagram.boxes]}


def _box(box: Box) -> dict[str, Any]:
    cells = [{"cpus": cell.core.cpus, "uses": cell.uses} for cell in box.cells]
    return {"title": box.title, "boxes": [_box(each) for each in box.boxes], "cells": cells}
