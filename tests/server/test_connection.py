"""A connection of HTTP/1.1: what it reads, and in which order it answers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from deepsched.server.http_protocol import Connection
from deepsched.server.settings import Settings

pytestmark = pytest.mark.server


class Endpoint:
    """/slow is answered once `go_on` is set, all else that is posted at once."""

    settings = Settings(max_body_bytes=1000, keep_alive=20, body_timeout=20, header_timeout=20)

    def __init__(self):
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()
        self.headers = {}

    def claims(self, url):
        return self._slow if url == b"/slow" else self._fast

    def is_last(self):
        return False

    async def _slow(self, exchange):
        self.began.set()
        await self.go_on.wait()
        exchange.answer(200, b"", [b"slow"])

    async def _fast(self, exchange):
        self.headers = exchange.headers
        exchange.answer(200, b"", [b"fast"])


def post(url, content=b"", headers=b""):
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (
        *(url, len(content), headers),
        content,
    )


@contextlib.asynccontextmanager
async def connected(app=None, tls=(None, None)):
    """A client's ends, the endpoint, and the server's end of its connection."""
    endpoint, made = Endpoint(), []

    def make():
        config = uvicorn.Config(app or no_app, ws="none", lifespan="off", log_config=None)
        made.append(Connection(endpoint, config=config, server_state=ServerState(), app_state={}))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", ssl=tls[0])
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=tls[1])
    try:
        await until(lambda: made and made[0].transport is not None)
        yield reader, writer, endpoint, made[0]
    finally:
        writer.close()
        server.close()
        if made[0].transport is not None:
            made[0].transport.abort()


async def no_app(scope, receive, send):
    raise AssertionError("not asked")


async def until(holds):
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def read(reader):
    return await asyncio.wait_for(reader.read(), 20)


LONG = b"a" * 70_000


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + LONG,
        b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + LONG,
        post(b"/fast", headers=b"X: " + LONG + b"\r\n"),
        post(b"/fast", headers=b"X: b\r\n" * 20_000),
        b"POST /fast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\nX: " + LONG * 9,
    ],
    ids=["a URL", "a whole URL", "a header", "a whole header", "many headers", "a trailer"],
)
def test_a_request_that_is_all_headers_is_refused(sent):
    async def run():
        async with connected() as (reader, writer, *_):
            writer.write(sent)
            assert (await read(reader)).startswith(b"HTTP/1.1 431 ")

    uvloop.run(run())


def test_bodies_do_not_count_as_headers_and_trailers_are_none():
    async def run():
        async with connected() as (reader, writer, endpoint, _):
            many = b"".join(post(b"/fast", b" " * 900) for _ in range(150))
            chunks = b"4\r\nbody\r\n" * 20 + b"0\r\nHost: y\r\n\r\n"
            writer.write(many)
            writer.write(b"POST /fast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
            writer.write_eof()
            answers = await read_until(reader, b"fast", 151)
            assert answers.count(b" 200 ") == 151
            assert endpoint.headers == {b"transfer-encoding": b"chunked"}

    uvloop.run(run())


async def read_until(reader, what, count):
    found = b""
    async with asyncio.timeout(20):
        while found.count(what) < count and (part := await reader.read(65536)):
            found += part
    return found


def test_any_number_of_requests_may_be_sent_behind_one_that_runs():
    async def run():
        async with connected() as (reader, writer, endpoint, _):
            writer.write(post(b"/slow") + post(b"/fast") * 1500)
            await endpoint.began.wait()
            endpoint.go_on.set()
            answers = await read_until(reader, b"fast", 1500)
            assert answers.count(b"HTTP/1.1 200 ") == 1501
            assert answers.index(b"slow") < answers.index(b"fast")

    uvloop.run(run())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(b"/fast", b" " * 2000), b"413"),
        (post(b"/fast") + post(b"/fast", b" " * 2000) + post(b"/fast"), b"413"),
        (b"GET /" + LONG, b"431"),
        (b"no HTTP\r\n\r\n", b"400"),
    ],
)
def test_a_refusal_waits_for_the_answers_before_it(sent, status):
    async def run():
        async with connected() as (reader, writer, endpoint, connection):
            writer.write(post(b"/slow") + sent)
            await endpoint.began.wait()
            await until(lambda: connection._is_within not in (0, 1, 2))  # refused
            endpoint.go_on.set()
            answers = await read(reader)
            statuses = re.findall(rb"HTTP/1.1 (\d+) ", answers)
            assert statuses[0] == b"200"
            assert statuses[-1] == status
            assert statuses.count(status) == 1
            assert len(statuses) == 2 + sent.startswith(post(b"/fast") + b"POST")

    uvloop.run(run())


def test_a_body_that_is_not_read_yet_is_not_late():
    async def run():
        async with connected() as (reader, writer, endpoint, connection):
            whole = post(b"/fast", b"body")
            writer.write(post(b"/slow") + whole[:-2])
            await endpoint.began.wait()
            await until(lambda: connection.flow.read_paused)
            now = time.monotonic()
            connection.check_time(now + 19)
            connection.check_time(now + 38)
            endpoint.go_on.set()
            writer.write(whole[-2:])
            assert (await read_until(reader, b"fast", 1)).count(b" 200 ") == 2

    uvloop.run(run())


def test_a_body_that_is_late_is_told_so_after_the_answers_before_it():
    async def run():
        async with connected() as (reader, writer, endpoint, connection):
            writer.write(post(b"/slow") + post(b"/fast", b"body")[:-2])
            await endpoint.began.wait()
            await until(lambda: connection.flow.read_paused)
            connection.flow.resume_reading()
            connection.check_time(time.monotonic() + 21)
            endpoint.go_on.set()
            answers = await read(reader)
            assert answers.index(b" 200 ") < answers.index(b" 408 ")

    uvloop.run(run())


async def endless(scope, receive, send):
    """A stream of events, as viewers of the live page have it."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while (await receive())["type"] != "http.disconnect":
        await send({"type": "http.response.body", "body": b"event", "more_body": True})


GET = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"


def tls():
    """Contexts of a server and of a client that trusts it."""
    authority = pytest.importorskip("trustme").CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("use", [None, tls], ids=["plain", "TLS"])
def test_a_stream_ends_with_its_connection_whatever_was_sent_behind(use):
    contexts = use() if use else (None, None)

    async def run():
        async with connected(endless, contexts) as (reader, writer, _, connection):
            writer.write(GET + GET)
            await until(lambda: connection.pipeline)
            await read_until(reader, b"event", 1)
            (writer if use else connection).transport.abort()
            await until(lambda: not connection.tasks)

    uvloop.run(run())


async def short(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"short"})


async def much(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):  # more than all buffers between the two ends take
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})


def test_a_connection_without_requests_is_closed_whatever_it_asked_for_last():
    async def run():
        async with connected(short) as (reader, writer, _, connection):
            writer.write(GET)
            await read_until(reader, b"short", 1)
            connection.check_time(time.monotonic() + 21)
            assert connection.transport.is_closing()

    uvloop.run(run())


def test_a_stream_that_nobody_reads_is_closed():
    async def run():
        async with connected(much) as (_, writer, _, connection):
            writer.write(GET)
            await until(lambda: connection.flow and connection.flow.write_paused)
            unsent = None
            while unsent != (unsent := connection.transport.get_write_buffer_size()):
                await asyncio.sleep(0.05)  # the client's buffers fill
            connection.check_time(time.monotonic())
            assert not connection.transport.is_closing()
            connection.check_time(time.monotonic() + 21)
            assert connection.transport.is_closing()

    uvloop.run(run())
