"""Every way in which a request is refused, and what its client is told: one table."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import CancelledError
from typing import NamedTuple

import msgspec
from grpc import StatusCode

from deepsched.errors import (
    ClosedError,
    DeadlineExceeded,
    DeepschedError,
    InferenceError,
    InputError,
    ModelError,
    OptionError,
    QueueFull,
)

logger = logging.getLogger("deepsched.server")


class RequestError(DeepschedError, ValueError):
    """A request that is not of the protocol's form, or that asks for what there is not."""


class ModelNotFound(DeepschedError, LookupError):
    """No model of this name or version."""


class NotReady(DeepschedError, RuntimeError):
    """The model is not there yet, or not any more."""


class TooLarge(RequestError):
    """More bytes than a request may have."""


class Unauthorized(DeepschedError, PermissionError):
    """The caller has not shown that it may do this."""


class Forbidden(DeepschedError, PermissionError):
    """Nobody may do this here."""


class Answer(NamedTuple):
    """What a client is told of an error."""

    http_status: int
    grpc_code: StatusCode
    outcome: str
    """How the request counts; a word."""
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


_RETRY = ((b"retry-after", b"1"),)

# The first row whose class fits.
_ROWS: tuple[tuple[type[BaseException], int, StatusCode, str, tuple[tuple[bytes, bytes], ...]], ...]
_ROWS = (
    (TooLarge, 413, StatusCode.RESOURCE_EXHAUSTED, "invalid", ()),
    (RequestError, 400, StatusCode.INVALID_ARGUMENT, "invalid", ()),
    (InputError, 400, StatusCode.INVALID_ARGUMENT, "invalid", ()),
    (ModelNotFound, 404, StatusCode.NOT_FOUND, "not_found", ()),
    (NotReady, 503, StatusCode.UNAVAILABLE, "closed", _RETRY),
    (QueueFull, 503, StatusCode.RESOURCE_EXHAUSTED, "rejected", _RETRY),
    (DeadlineExceeded, 504, StatusCode.DEADLINE_EXCEEDED, "expired", ()),
    (Unauthorized, 401, StatusCode.UNAUTHENTICATED, "invalid", ((b"www-authenticate", b"Bearer"),)),
    (Forbidden, 403, StatusCode.PERMISSION_DENIED, "invalid", ()),
    (ClosedError, 503, StatusCode.UNAVAILABLE, "closed", _RETRY),
    # A kernel refuses what the inputs hold: an index that is out of range, sizes that do not match.
    (InferenceError, 400, StatusCode.INVALID_ARGUMENT, "failed", ()),
    (ModelError, 400, StatusCode.INVALID_ARGUMENT, "invalid", ()),  # of a load
    (OptionError, 400, StatusCode.INVALID_ARGUMENT, "invalid", ()),
    (asyncio.CancelledError, 499, StatusCode.CANCELLED, "cancelled", ()),
    (CancelledError, 499, StatusCode.CANCELLED, "cancelled", ()),
    (MemoryError, 503, StatusCode.RESOURCE_EXHAUSTED, "failed", _RETRY),
)


def answer_of(error: BaseException) -> Answer:
    """What the client of a request that ended with `error` is told."""
    for kind, http_status, grpc_code, outcome, headers in _ROWS:
        if isinstance(error, kind):
            if kind is InferenceError and "allocate" in str(error):
                return Answer(503, StatusCode.RESOURCE_EXHAUSTED, outcome, str(error), _RETRY)
            return Answer(http_status, grpc_code, outcome, str(error), headers)
    logger.error("a request failed by an error of the server", exc_info=error)
    return Answer(500, StatusCode.INTERNAL, "failed", "an error of the server; its log says which")


def error_json(message: str) -> bytes:
    """An error in the protocol's form."""
    return msgspec.json.encode({"error": message})
