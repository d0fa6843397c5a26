"""Bytes of an HTTP connection: whatever they are, and in whichever pieces they come, each request
that is complete is answered once, in its order, the rest is refused or waited for, and nothing
fails inside. The statuses do not depend on the pieces.

The first byte is the length of the pieces; 0: all at once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from deepsched.server.http_protocol import Connection, Exchange, Handler
from deepsched.server.settings import Settings
from fuzz.target import Target


def check(data: bytes) -> None:
    sent = data[1:]
    whole = _statuses([sent])
    size = data[0] if data else 0
    if size:
        parts = [sent[at : at + size] for at in range(0, len(sent), size)]
        assert _statuses(parts) == whole, (whole, _statuses(parts))


def _statuses(parts: list[bytes]) -> list[bytes]:
    return _loop().run_until_complete(_converse(parts))


async def _converse(parts: list[bytes]) -> list[bytes]:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    handler = _Failures(failures)
    logging.disable(logging.NOTSET)
    logging.getLogger().addHandler(handler)
    try:
        transport = _Transport()
        connection = Connection(
            _Endpoint(), config=_config(), server_state=ServerState(), app_state={}
        )
        connection.connection_made(transport)
        for part in parts:
            if transport.is_closing():
                break
            connection.data_received(part)
            await _idle(connection)
        connection.connection_lost(None)
        await _idle(connection)
        assert not connection.tasks, "a task goes on without its client"
    finally:
        logging.getLogger().removeHandler(handler)
    assert not failures, failures
    statuses = re.findall(rb"^HTTP/1\.1 (\d+) ", transport.written, re.M)
    assert b"500" not in statuses, transport.written
    return statuses


async def _idle(connection: Connection) -> None:
    """Until no task can go on: those that are left wait for the client."""
    for turn in range(30):
        if turn > 3 and not connection.pipeline and not connection.tasks:
            break
        await asyncio.sleep(0)


class _Failures(logging.Handler):
    """What is logged as an error is one."""

    def __init__(self, failures: list[Any]) -> None:
        super().__init__(logging.ERROR)
        self._failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        self._failures.append(self.format(record))


class _Transport(asyncio.Transport):
    """A client that reads all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class _Endpoint:
    """Answers what is posted to /fast and, a turn of the loop later, to /slow."""

    settings = Settings(max_body_bytes=1000)

    def claims(self, url: bytes) -> Handler | None:
        return {b"/fast": self._fast, b"/slow": self._slow}.get(url)

    def is_last(self) -> bool:
        return False

    async def _fast(self, exchange: Exchange) -> None:
        exchange.answer(200, b"", [b"fast"])

    async def _slow(self, exchange: Exchange) -> None:
        await asyncio.sleep(0)
        exchange.answer(200, b"", [exchange.body or b"slow"])


async def _app(scope: Any, receive: Any, send: Any) -> None:
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.request":
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b"app"})


_loop = functools.cache(asyncio.new_event_loop)


@functools.cache
def _config() -> uvicorn.Config:
    config = uvicorn.Config(_app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    return config


def _post(url: bytes, body: bytes, headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n%b" % (url, length, headers, body)


def _seeds() -> Iterator[bytes]:
    fast, slow = _post(b"/fast", b"body"), _post(b"/slow", b"body")
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    chunked = (
        b"POST /fast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nA: b\r\n\r\n"
    )
    yield b"\0" + fast + slow + get
    yield b"\7" + slow + fast + get + chunked + slow
    yield b"\1" + chunked + get
    yield b"\5" + _post(b"/slow", b"b", b"Expect: 100-continue\r\n") + get
    yield b"\0" + slow + _post(b"/fast", bytes(1100)) + fast
    yield b"\3" + _post(b"/other", b"b", b"Connection: close\r\n") + fast
    yield b"\0" + get.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    yield b"\4" + b"GET / HTTP/1.0\r\n\r\n" + fast
    yield b"\0" + slow + b"no HTTP\r\n\r\n"


_WORDS = (
    *(b"GET ", b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" HTTP/1.1\r\n", b"\r\n\r\n"),
    *(
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"CONNECT ",
    ),
    *(b"Expect: 100-continue\r\n", b"Upgrade: ", b"0\r\n\r\n", b"/fast", b"/slow", b"HEAD "),
)

TARGET = Target(check, _seeds, words=_WORDS)
