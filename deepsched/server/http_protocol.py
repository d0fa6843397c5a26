"""A connection of HTTP/1.1: uvicorn's, with limits, and with a way of its own for inferences.

Uvicorn's way to an application (a scope, an event by part of the body, a call by part of the
answer) costs more than the request does here. So requests that the endpoint claims are read whole,
into memory where their tensors are aligned, and handled by one task; all others go the usual
way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

import numpy as np
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from deepsched.server.errors import TooLarge, answer_of, error_json
from deepsched.server.settings import Settings

logger = logging.getLogger("deepsched.server")

_ALIGNMENT = 64

Header = tuple[bytes, bytes]


class Endpoint(Protocol):
    """Handles requests that are read whole."""

    settings: Settings

    def claims(self, url: bytes) -> Handler | None:
        """What handles POST requests for `url`; None leaves them to uvicorn's way."""

    def is_last(self) -> bool:
        """Whether connections end with their next answer, since the server stops."""


Handler = Callable[["Exchange"], Coroutine[Any, Any, None]]


class Exchange:
    """A request that is read whole, and its answer. It stands where uvicorn has its cycle."""

    __slots__ = (
        "_at",
        "_buffer",
        "_length",
        "_parts",
        "_ready",
        "body",
        "connection",
        "disconnected",
        "handler",
        "headers",
        "keep_alive",
        "message_event",
        "response_complete",
        "task",
        "url",
    )

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self.connection = connection
        self.handler = handler
        self.url: bytes = connection.url
        self.headers: list[Header] = connection.headers
        self.body: memoryview = _NOTHING
        """All of it, once it has arrived."""
        self.keep_alive = bool(connection.parser.should_keep_alive())
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NO_EVENT
        self.task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._length = -1
        self._at = 0
        self._parts: list[bytes] = []
        self._buffer: memoryview | None = None

    # --- Its body ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Looks at the headers.

        Raises:
            TooLarge: it announces more than it may have.
        """
        for name, value in self.headers:
            if name == b"content-length":
                self._length = int(value)
                if self._length > self.connection.settings.max_body_bytes:
                    raise TooLarge(
                        f"the body has {self._length} bytes, at most "
                        f"{self.connection.settings.max_body_bytes} are taken"
                    )

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            TooLarge: there are more than there may be.
        """
        if self._buffer is not None:
            self._buffer[self._at : self._at + len(data)] = data
            self._at += len(data)
            return
        if self._length > len(data):
            self._buffer = self._aligned()
            self.feed(data)
            return
        self._at += len(data)
        if self._at > self.connection.settings.max_body_bytes:
            raise TooLarge(
                f"the body has more than {self.connection.settings.max_body_bytes} bytes"
            )
        self._parts.append(data)

    def _aligned(self) -> memoryview:
        """Memory for the body in which the first tensor, behind the JSON, is aligned."""
        behind = self.header(b"inference-header-content-length")
        num_json = int(behind) if behind.isdigit() and len(behind) < 10 else 0
        memory = np.empty(self._length + _ALIGNMENT, np.uint8)
        start = -(memory.__array_interface__["data"][0] + num_json) % _ALIGNMENT
        return memory.data[start : start + self._length]

    def end(self) -> None:
        """The body is complete."""
        if self._buffer is not None:
            self.body = self._buffer
        else:
            parts = self._parts
            self.body = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        self._parts = []
        self._buffer = None

    def header(self, wanted: bytes) -> bytes:
        """A header's value; empty if there is none."""
        for name, value in self.headers:
            if name == wanted:
                return value
        return b""

    # --- Its answer -------------------------------------------------------------------------

    async def run_asgi(self, app: object) -> None:
        """Handles the request as soon as it is complete; uvicorn's name for it."""
        if self._ready is not None:
            await self._ready
        if self.connection.flow.write_paused:
            await self.connection.flow.drain()  # its client has not read the last answer yet
        try:
            await self.handler(self)
        except Exception:
            logger.exception("an answer could not be given")
            self.connection.transport.abort()

    def answer(self, status: int, headers: list[Header], parts: list[bytes | memoryview]) -> None:
        """Writes an answer. Memory in `parts` is not copied, and kept until it is sent."""
        connection = self.connection
        self.response_complete = True
        if self.disconnected or connection.transport.is_closing():
            return
        length = 0
        for part in parts:
            length += len(part)
        head = [STATUS_LINE[status], connection.default_head()]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(b"content-length: %d\r\n\r\n" % length)
        connection.send(b"".join(head), parts)
        if self.keep_alive:
            connection.answered()
        else:
            connection.end()

    def refuse(self, error: BaseException) -> None:
        """Answers with an error."""
        answer = answer_of(error)
        headers = [(b"content-type", b"application/json"), *answer.headers]
        self.answer(answer.http_status, headers, [error_json(answer.message)])


class Connection(HttpToolsProtocol):
    """See the module."""

    cycle: RequestResponseCycle | Exchange  # type: ignore[assignment]

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self.settings = endpoint.settings
        self._endpoint = endpoint
        self._claims = endpoint.claims
        self._running: Exchange | None = None
        self._default_headers: list[Header] | None = None
        self._default_head = b""
        self._is_within = _IDLE
        self._noted = _IDLE
        self._unsent = 0
        self._since = time.monotonic()

    # --- Limits -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._turn_away(503, f"{self.settings.max_connections} connections are open already")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        running = self._running
        if running is not None and not running.response_complete and running.task is not None:
            running.disconnected = True
            running.task.cancel()  # its client has left

    def check_time(self, now: float) -> None:
        """Ends what has taken too long; to be called about once a second."""
        if self._is_within == _IDLE:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:  # its client reads
                self._unsent, self._since = unsent, now
            limit = None
            if self.cycle is None:
                limit = self.settings.header_timeout
            elif type(self.cycle) is Exchange and self.cycle.response_complete:
                limit = self.settings.keep_alive
            if limit is not None and now - self._since > limit:
                if unsent:
                    self.transport.abort()  # close() would wait until it has been read
                else:
                    self.transport.close()
            return
        if self._is_within == _LINGERING:
            if now - self._since > _LINGER_S:
                self.transport.abort()
            return
        if self._is_within == _HEADERS:
            limit, what = self.settings.header_timeout, "headers"
        else:
            limit, what = self.settings.body_timeout, "body"
        if now - self._since > limit:
            self._turn_away(408, f"the request's {what} did not arrive within {limit:g} s")

    def _turn_away(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or type(self.cycle) is Exchange:
            text = error_json(message)
            self.transport.write(
                b"%bcontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
                b"content-length: %d\r\n\r\n%b" % (STATUS_LINE[status], len(text), text)
            )
        self.end()

    # --- What the parser finds --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_within == _LINGERING:
            return
        super().data_received(data)
        if self._is_within != self._noted:
            self._noted = self._is_within
            self._since = time.monotonic()

    def on_message_begin(self) -> None:
        # Uvicorn's scope is made once it is needed.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._is_within = _HEADERS

    def on_headers_complete(self) -> None:
        self._is_within = _BODY
        handler = self._claims(self.url) if self.parser.get_method() == b"POST" else None
        if handler is None:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers += headers
            self.scope["deepsched.connection"] = self  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()
            return
        before = self.cycle
        exchange = Exchange(self, handler)
        self.cycle = exchange
        if before is not None and not before.response_complete:
            # Its turn comes when the one before it is answered.
            exchange._ready = self.loop.create_future()
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        try:
            exchange.begin()
        except TooLarge as error:
            self._refuse_body(exchange, error)
            return
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if type(cycle) is not Exchange:
            super().on_body(body)
        elif not cycle.response_complete:
            try:
                cycle.feed(body)
            except TooLarge as error:
                self._refuse_body(cycle, error)

    def _refuse_body(self, exchange: Exchange, error: TooLarge) -> None:
        exchange.keep_alive = False
        exchange.refuse(error)

    def end(self) -> None:
        """Sends what has been written, and closes.

        A socket that is closed with bytes that nobody has read resets the connection, and its
        client may never see the answer: so they are read for a while.
        """
        if self._is_within == _BODY and self.transport.can_write_eof():
            self.transport.write_eof()
            self._is_within = _LINGERING
        else:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._is_within = _IDLE
        exchange = self.cycle
        if type(exchange) is not Exchange:
            super().on_message_complete()
        elif not exchange.response_complete:
            exchange.end()
            if exchange._ready is not None:
                exchange._ready.set_result(None)
            else:
                self._start_asgi_task(exchange, self.app)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._endpoint.is_last():
            cycle.keep_alive = False
        if type(cycle) is not Exchange:
            super()._start_asgi_task(cycle, app)
            return
        self._running = cycle
        work = cycle.run_asgi(app)
        try:
            waits_for = work.send(None)
        except StopIteration:
            return  # answered already
        left = _Begun(work, waits_for)
        task = cycle.task = self.loop.create_task(left.finish())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- Writing ----------------------------------------------------------------------------

    def default_head(self) -> bytes:
        """The headers that every answer has, as bytes."""
        headers = self.server_state.default_headers  # a new list every second, with the date
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return self._default_head

    def send(self, head: bytes, parts: list[bytes | memoryview]) -> None:
        """Writes an answer in one call of the system, if the socket takes it."""
        if len(parts[-1]) < _SMALL:
            self.transport.write(b"".join([head, *parts]))
        else:
            self.transport.writelines([head, *parts])

    def answered(self) -> None:
        """Goes on with the next request; uvicorn's `on_response_complete`, but for its timer, in
        whose place `check_time` looks."""
        self.server_state.total_requests += 1
        self._since = time.monotonic()
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())


class _Begun:
    """A coroutine that has begun outside a task, and has come to wait for `waits_for`.

    A task is made only for what has to wait; Python does so itself since 3.12 (eager tasks).
    """

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    async def finish(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            thrown: BaseException | None = None
            try:
                yield waits_for
            except BaseException as error:
                thrown = error
            try:
                waits_for = self._work.throw(thrown) if thrown else self._work.send(None)
            except StopIteration:
                return


_NOTHING = memoryview(b"")
_IDLE, _HEADERS, _BODY, _LINGERING = range(4)

_LINGER_S = 2.0
_SMALL = 16384


class _NoEvent:
    def set(self) -> None:
        """Nobody waits."""


_NO_EVENT = _NoEvent()
