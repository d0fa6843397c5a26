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

import httptools
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

JSON = b"content-type: application/json\r\n"


class Endpoint(Protocol):
    """Handles requests that are read whole."""

    settings: Settings

    def claims(self, url: bytes) -> Handler | None:
        """What handles POST requests for `url`; None leaves them to uvicorn's way."""

    def is_last(self) -> bool:
        """Whether connections end with their next answer, since the server stops."""


Handler = Callable[["Exchange"], Coroutine[Any, Any, None]]


class _NoEvent:
    def set(self) -> None:
        """Nobody waits."""


_NO_EVENT = _NoEvent()


class Exchange:
    """A request that is read whole, and its answer. It stands where uvicorn has its cycle."""

    # What most requests never set is the class's.
    body = memoryview(b"")
    """All of it, once it has arrived."""
    disconnected = False
    response_complete = False
    message_event = _NO_EVENT
    task: asyncio.Task[None] | None = None
    _ready: asyncio.Future[None] | None = None
    _refusal: _Refused | None = None
    _length = -1
    _at = 0
    _buffer: memoryview | None = None

    def __init__(self, connection: Connection, handler: Handler | None) -> None:
        self.connection = connection
        self.handler = handler
        self.url: bytes = connection.url
        self.headers: dict[bytes, bytes] = dict(connection.headers)
        """By name in lower case; the last of a name."""
        self.keep_alive = bool(connection.parser.should_keep_alive())
        self._parts: list[bytes] = []

    # --- Its body ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Looks at the headers.

        Raises:
            TooLarge: it announces more than it may have.
        """
        length = self.headers.get(b"content-length")
        if length is not None:
            self._length = int(length)
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

    def refuse_in_turn(self, refusal: _Refused) -> None:
        """It is answered with `refusal`, once those before it are, and not handled."""
        self._refusal = refusal
        self.keep_alive = False
        self.end()

    def _aligned(self) -> memoryview:
        """Memory for the body in which the first tensor, behind the JSON, is aligned."""
        behind = self.headers.get(b"inference-header-content-length", b"")
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

    # --- Its answer -------------------------------------------------------------------------

    async def run_asgi(self, app: object) -> None:
        """Handles the request as soon as it is complete; uvicorn's name for it."""
        if self._ready is not None:
            await self._ready
        if self.connection.flow.write_paused:
            await self.connection.flow.drain()  # its client has not read the last answer yet
        try:
            if self._refusal is not None:
                self._answer_refusal(self._refusal)
            elif self.handler is not None:
                await self.handler(self)
        except Exception:
            logger.exception("an answer could not be given")
            self.connection.transport.abort()

    def answer(self, status: int, headers: bytes, parts: list[bytes | memoryview]) -> None:
        """Writes an answer.

        Args:
            headers: lines, each with its end, but those that every answer has.
            parts: the body's. Large ones are not copied, and kept until they are sent.
        """
        if self.response_complete:
            return
        connection = self.connection
        self.response_complete = True
        if self.disconnected or connection.transport.is_closing():
            return
        length = 0
        for part in parts:
            length += len(part)
        head = (
            STATUS_LINE[status],
            connection.default_head(),
            headers,
            b"" if self.keep_alive else b"connection: close\r\n",
            b"content-length: %d\r\n\r\n" % length,
        )
        if length < _SMALL:
            connection.transport.write(b"".join((*head, *parts)))
        else:
            connection.transport.writelines([b"".join(head), *parts])
        if self.keep_alive:
            connection.on_response_complete()
        else:
            connection.end()

    def refuse(self, error: BaseException) -> None:
        """Answers with an error."""
        answer = answer_of(error)
        more = b"".join(b"%b: %b\r\n" % header for header in answer.headers)
        self.answer(answer.http_status, JSON + more, [error_json(answer.message)])

    def _answer_refusal(self, refusal: _Refused) -> None:
        more = b"retry-after: 1\r\n" if refusal.status == 503 else b""
        self.answer(refusal.status, JSON + more, [error_json(str(refusal))])


class _Refused(Exception):
    """A request that is not taken, and ends its connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(HttpToolsProtocol):
    """See the module."""

    cycle: RequestResponseCycle | Exchange  # type: ignore[assignment]

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self.settings = endpoint.settings
        self._endpoint = endpoint
        self._claims = endpoint.claims
        self.url = b""
        self.headers = []
        self._running: RequestResponseCycle | Exchange | None = None
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_head = b""
        self._is_within = _IDLE
        self._noted = _IDLE
        self._num_found = 0
        """Bytes of the request's URL, headers and trailers that the parser has found."""
        self._num_unfinished = 0
        """Bytes in which it has found no body: it may hold them as the start of a header."""
        self._num_parts = 0
        """Requests begun and parts of bodies in the bytes that are being parsed."""
        self._unsent = 0
        self._since = self._moved = time.monotonic()

    # --- Limits -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503, f"{self.settings.max_connections} connections are open already")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        running = self._running
        if running is None or running.response_complete:
            return
        # Uvicorn knows the newest request only, which may be one that waits behind it.
        running.disconnected = True
        running.message_event.set()
        if type(running) is Exchange and running.task is not None:
            running.task.cancel()  # its client has left

    def check_time(self, now: float) -> None:
        """Ends what has taken too long; to be called about once a second."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:  # its client reads
            self._unsent, self._moved = unsent, now
        if self.flow.write_paused and now - self._moved > self.settings.keep_alive:
            self.transport.abort()  # close() would wait until it has been read
        elif self._is_within == _LINGERING:
            if now - self._since > _LINGER_S:
                self.transport.abort()
        elif self._is_within in (_IDLE, _REFUSED):
            self._check_idle(now)
        elif self.flow.read_paused:
            self._since = now  # what does not arrive is what we do not read
        else:
            if self._is_within == _HEADERS:
                limit, what = self.settings.header_timeout, "headers"
            else:
                limit, what = self.settings.body_timeout, "body"
            if now - self._since > limit:
                self._refuse(408, f"the request's {what} did not arrive within {limit:g} s")

    def _check_idle(self, now: float) -> None:
        if self.cycle is None:
            limit = self.settings.header_timeout
        elif self.cycle.response_complete:
            limit = self.settings.keep_alive
        else:
            return
        if now - max(self._since, self._moved) > limit:
            if self._unsent:
                self.transport.abort()
            else:
                self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Takes nothing more, answers so once all that was accepted is answered, and ends."""
        if self.transport.is_closing() or self._is_within in (_REFUSED, _LINGERING):
            return
        was_within, self._is_within = self._is_within, _REFUSED
        refused = self.cycle
        is_complete = was_within != _BODY or refused is None or refused.response_complete
        if type(refused) is Exchange and not is_complete:
            self._refuse_in_turn(refused, _Refused(status, message))
            return
        if refused is not None and not is_complete:
            # Uvicorn's: its application runs already, or waits for its turn, which is taken away.
            waits = bool(self.pipeline) and self.pipeline[0][0] is refused
            refused.disconnected = True
            refused.message_event.set()
            if waits:
                self.pipeline.popleft()
            elif refused.response_started:  # type: ignore[union-attr]
                self.end()
                return
            else:
                refused.response_complete = True
        exchange = Exchange(self, None)
        self._queue(exchange)
        self._refuse_in_turn(exchange, _Refused(status, message))

    def _refuse_in_turn(self, exchange: Exchange, refusal: _Refused) -> None:
        exchange.refuse_in_turn(refusal)
        self._begin(exchange)

    # --- What the parser finds --------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_within in (_REFUSED, _LINGERING):
            return
        was_within = self._is_within
        self._num_parts = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        except httptools.HttpParserError as error:
            # What a callback raises comes as the parser's error.
            refusal = error.__context__
            if not isinstance(refusal, _Refused):
                logger.warning("a request that is not HTTP: %s", error)
                refusal = _Refused(400, "Invalid HTTP request received.")
            self._refuse(refusal.status, str(refusal))
        else:
            if self._num_parts == (was_within == _IDLE):  # all of it is of one head, or trailer
                self._num_unfinished += len(data)
                if self._num_unfinished > _MAX_HEAD and self._is_within != _IDLE:
                    self._refuse(*_TOO_LONG)
        if self._is_within != self._noted:
            self._noted = self._is_within
            self._since = time.monotonic()

    def on_message_begin(self) -> None:
        # Uvicorn's scope is made once it is needed.
        self.url = b""
        self.headers = []
        self._is_within = _HEADERS
        self._num_found = self._num_unfinished = 0
        self._num_parts += 1

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._num_found += len(url)
        if self._num_found > _MAX_HEAD:
            raise _Refused(*_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_found += len(name) + len(value) + len(b": \r\n")
        if self._num_found > _MAX_HEAD:
            raise _Refused(*_TOO_LONG)
        if self._is_within == _HEADERS:  # else it is a trailer, which nobody asks for
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_within = _BODY
        handler = self._claims(self.url) if self.parser.get_method() == b"POST" else None
        if handler is None:
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.url = url
            self.headers += headers
            self.expect_100_continue = _waits_for_100(dict(headers))
            self.scope["deepsched.connection"] = self  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()
            return
        exchange = Exchange(self, handler)
        self._queue(exchange)
        try:
            exchange.begin()
        except TooLarge as error:
            raise _Refused(413, str(error)) from error
        if _waits_for_100(exchange.headers):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _queue(self, exchange: Exchange) -> None:
        """The newest request. Its turn comes when the one before it is answered."""
        before, self.cycle = self.cycle, exchange
        if before is not None and not before.response_complete:
            exchange._ready = self.loop.create_future()
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def _begin(self, exchange: Exchange) -> None:
        """Handles a request that is complete, as soon as its turn has come."""
        if exchange._ready is not None:
            exchange._ready.set_result(None)
        else:
            self._start_asgi_task(exchange, self.app)

    def on_body(self, body: bytes) -> None:
        self._num_parts += 1
        self._num_unfinished = 0
        cycle = self.cycle
        if type(cycle) is not Exchange:
            super().on_body(body)
        elif not cycle.response_complete:
            try:
                cycle.feed(body)
            except TooLarge as error:
                raise _Refused(413, str(error)) from error

    def end(self) -> None:
        """Sends what has been written, and closes.

        A socket that is closed with bytes that nobody has read resets the connection, and its
        client may never see the answer: so they are read for a while.
        """
        if self._is_within != _IDLE and self.transport.can_write_eof():
            self.transport.write_eof()
            self._is_within = _LINGERING
            self._since = time.monotonic()
            if self.flow.read_paused:
                self.flow.resume_reading()
        else:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._is_within = _IDLE
        exchange = self.cycle
        if type(exchange) is not Exchange:
            super().on_message_complete()
        elif not exchange.response_complete:
            exchange.end()
            self._begin(exchange)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._endpoint.is_last():
            cycle.keep_alive = False
        self._running = cycle
        if type(cycle) is not Exchange:
            super()._start_asgi_task(cycle, app)
            return
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

    def on_response_complete(self) -> None:
        """Goes on with the next request; uvicorn's, but for its timer, in whose place `check_time`
        looks."""
        self.server_state.total_requests += 1
        self._since = time.monotonic()
        if self.pipeline:
            # Not from here: an answer that is given at once would be given within this one.
            self.loop.call_soon(self._go_on)
        elif self.flow.read_paused:
            self.flow.resume_reading()

    def _go_on(self) -> None:
        if not self.pipeline or self.transport.is_closing():
            return
        self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline and self.flow.read_paused:
            self.flow.resume_reading()  # the newest, which has begun, may miss some of its body


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


def _waits_for_100(headers: dict[bytes, bytes]) -> bool:
    """Whether the client sends the body once it is told to."""
    return headers.get(b"expect", b"").lower() == b"100-continue"


_IDLE, _HEADERS, _BODY, _REFUSED, _LINGERING = range(5)

_MAX_HEAD = 65536
_TOO_LONG = 431, f"the request's URL and headers are longer than {_MAX_HEAD} bytes"

_LINGER_S = 2.0
_SMALL = 16384
