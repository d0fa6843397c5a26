"""Inferences over HTTP: from a whole request to its answer; v2's `infer`, v1's `:predict`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

from deepsched.server import predict, rest_infer
from deepsched.server.compression import coding_for, compressed, decompressed
from deepsched.server.errors import RequestError, answer_of
from deepsched.server.http_protocol import JSON, Exchange, Handler
from deepsched.server.inference import Ended, run_times_ns
from deepsched.server.rest_infer import Body
from deepsched.server.server import Server

# Whose parts are remembered; so none may be of any length.
_MOST_PATHS = 256
_LONGEST_PATH = 4096

_RAW = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"


class HttpInference:
    """The endpoint that connections hand inferences to."""

    def __init__(self, server: Server) -> None:
        self.settings = server.settings
        self._server = server
        self.inference = server.inference
        self._infer = partial(self._handle, "rest", _v2_path, rest_infer.infer)
        self._predict = partial(self._handle, "v1", _v1_path, predict.predict)

    def is_last(self) -> bool:
        """See `http_protocol.Endpoint`."""
        return self._server.is_stopping

    def claims(self, url: bytes) -> Handler | None:
        """See `http_protocol.Endpoint`."""
        path = url.partition(b"?")[0] if b"?" in url else url
        if path.startswith(b"/v2/models/") and path.endswith(b"/infer"):
            return self._infer
        if path.startswith(b"/v1/models/") and path.endswith(b":predict"):
            return self._predict
        return None

    async def _handle(
        self,
        protocol: str,
        parse_path: Callable[[bytes], tuple[str, str]],
        infer: Callable[..., Awaitable[Body]],
        exchange: Exchange,
    ) -> None:
        began_ns = time.monotonic_ns()
        name = version = request_id = ""
        outcome = "cancelled"
        try:
            if self.inference.on_end is not None:
                run_times_ns.set(())  # those of another request, where this one has not run
            path = exchange.url.partition(b"?")[0]
            if len(path) > _LONGEST_PATH:
                raise RequestError(f"a path may have {_LONGEST_PATH} bytes, got {len(path)}")
            name, version = parse_path(path)
            headers = exchange.headers
            body = exchange.body
            encoding = headers.get(b"content-encoding")
            if encoding is not None:
                body = await decompressed(body, encoding, self.settings.max_body_bytes)
            length = headers.get(b"inference-header-content-length")
            limit = headers.get(b"inference-timeout-ms")
            answer = await infer(
                self.inference,
                name,
                version,
                body,
                None if length is None else _number(length),
                None if limit is None else _seconds(limit),
                self.settings.max_json_bytes,
            )
            request_id = answer.request_id
            lines = JSON if answer.json_bytes is None else _RAW % answer.json_bytes
            parts = answer.parts
            accept = headers.get(b"accept-encoding")
            if accept:
                coding = coding_for(accept, sum(map(len, parts)), answer.json_bytes is not None)
                if coding:
                    parts = [await compressed(parts, coding)]
                    lines += b"content-encoding: %b\r\n" % coding
            exchange.answer(200, lines, parts)
            outcome = "done"
        except asyncio.CancelledError:
            if not exchange.disconnected:  # not by the client's leaving
                exchange.connection.transport.abort()
            raise
        except Exception as error:
            outcome = answer_of(error).outcome
            exchange.refuse(error)
        finally:
            if self.inference.on_end is not None:
                self.inference.on_end(
                    Ended(
                        name,
                        version,
                        request_id,
                        protocol,
                        outcome,
                        began_ns,
                        time.monotonic_ns(),
                        str((exchange.connection.client or ("",))[0]),
                        exchange.headers.get(b"traceparent", b"").decode("latin-1"),
                        run_times_ns.get(),
                    )
                )


@lru_cache(_MOST_PATHS)
def _v2_path(path: bytes) -> tuple[str, str]:
    """Model and version of /v2/models/NAME[/versions/VERSION]/infer."""
    parts = path.split(b"/")
    if len(parts) == 5:
        return _text(parts[3]), ""
    if len(parts) == 7 and parts[4] == b"versions":
        return _text(parts[3]), _text(parts[5])
    raise RequestError(
        "expected /v2/models/NAME/infer or /v2/models/NAME/versions/VERSION/infer, got "
        f"{path.decode('latin-1')!r:.200}"
    )


@lru_cache(_MOST_PATHS)
def _v1_path(path: bytes) -> tuple[str, str]:
    """Model and version of /v1/models/NAME[/versions/VERSION]:predict."""
    parts = path.removesuffix(b":predict").split(b"/")
    if len(parts) == 4:
        return _text(parts[3]), ""
    if len(parts) == 6 and parts[4] == b"versions":
        return _text(parts[3]), _text(parts[5])
    raise RequestError(f"expected /v1/models/NAME:predict, got {path.decode('latin-1')!r:.200}")


def _text(part: bytes) -> str:
    return (unquote_to_bytes(part) if b"%" in part else part).decode("utf-8", "replace")


def _number(value: bytes) -> int:
    """Bytes, from Inference-Header-Content-Length."""
    if not value.isdigit() or len(value) > 18:
        raise RequestError(
            "Inference-Header-Content-Length: expected a number of bytes, got "
            f"{value.decode('latin-1')!r:.40}"
        )
    return int(value)


def _seconds(value: bytes) -> float:
    """From Inference-Timeout-Ms."""
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < 1e12:
        raise RequestError(
            "Inference-Timeout-Ms: expected milliseconds, more than 0, got "
            f"{value.decode('latin-1')!r:.40}"
        )
    return milliseconds / 1000
