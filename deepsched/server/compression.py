"""gzip and deflate of HTTP bodies, and of gRPC's messages."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from deepsched.server.errors import RequestError, TooLarge

_GZIP_BITS = 31
_ZLIB_BITS = 15

# Below this, an answer gets longer.
_WORTH_BYTES = 1024

# From here on, others are served meanwhile: 1 ms or so.
_LONG = 32768

# So much is inflated before others are: a small body may become a thousand times as large.
_FIRST_BYTES = 2**20

# Where level 6 takes three times as long, for a tenth less.
_LEVEL = 1


async def decompressed(body: memoryview, encoding: bytes, max_bytes: int) -> memoryview:
    """A request's body, as its Content-Encoding says.

    Raises:
        RequestError: an encoding that is not known here, or a body that is not of it.
        TooLarge: more than `max_bytes`.
    """
    coding = encoding.strip().lower()
    if coding in (b"", b"identity"):
        return body
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        raise RequestError(
            f"Content-Encoding: expected gzip or deflate, got {encoding.decode('latin-1')!r:.40}"
        )
    bits = _ZLIB_BITS if coding == b"deflate" else _GZIP_BITS
    return await _inflated(body, bits, max_bytes)


def is_compressed(message: bytes) -> bool:
    """Whether a message of gRPC, which does not say how it is compressed, begins as gzip or zlib
    do, and as none of the protocol's messages."""
    if message[:1] == b"\x78":
        return int.from_bytes(message[:2]) % 31 == 0  # zlib's check
    return message[:2] == b"\x1f\x8b"


async def decompressed_message(message: bytes, max_bytes: int) -> bytes:
    """A message of gRPC that is compressed.

    Raises:
        RequestError: it is not of that form.
        TooLarge: more than `max_bytes`.
    """
    bits = _ZLIB_BITS if message[:1] == b"\x78" else _GZIP_BITS
    return (await _inflated(memoryview(message), bits, max_bytes)).tobytes()


async def _inflated(body: memoryview, bits: int, max_bytes: int) -> memoryview:
    inflater = zlib.decompressobj(bits)
    if body.nbytes >= _LONG:
        plain = await asyncio.to_thread(_inflate, inflater, body, max_bytes + 1)
    else:
        plain = _inflate(inflater, body, min(_FIRST_BYTES, max_bytes + 1))
        left = max_bytes + 1 - len(plain)
        if left > 0 and len(plain) == _FIRST_BYTES and not inflater.eof:
            tail = memoryview(inflater.unconsumed_tail)
            plain += await asyncio.to_thread(_inflate, inflater, tail, left)
    if len(plain) > max_bytes:
        raise TooLarge(f"the request has more than {max_bytes} bytes when decompressed")
    if not inflater.eof or inflater.unused_data:
        raise RequestError("the request is not of its encoding: it does not end where it should")
    return memoryview(plain)


def _inflate(inflater: Any, body: memoryview, max_bytes: int) -> bytes:
    try:
        return bytes(inflater.decompress(body, max_bytes))
    except zlib.error as error:
        raise RequestError(f"the request is not of its encoding: {error}") from None


def coding_for(accept: bytes, num_bytes: int, has_raw: bool) -> bytes:
    """The Content-Encoding of an answer; empty for none.

    Raw tensors hardly shrink, and many programs accept gzip without asking for it: so these are
    compressed only where a client accepts nothing but one encoding.

    >>> coding_for(b"gzip, deflate, br", 5000, False), coding_for(b"gzip, deflate, br", 5000, True)
    (b'gzip', b'')
    >>> coding_for(b"deflate", 5000, True)
    b'deflate'
    """
    if not accept or num_bytes < _WORTH_BYTES:
        return b""
    codings = []
    for item in accept.lower().split(b","):
        coding, _, weight = item.partition(b";")
        if weight.strip().replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000"):
            codings.append(coding.strip())
    if has_raw and len(codings) != 1:
        return b""
    return next((coding for coding in (b"gzip", b"deflate") if coding in codings), b"")


async def compressed(parts: list[bytes | memoryview], coding: bytes) -> bytes:
    """An answer's body in one piece."""
    bits = _ZLIB_BITS if coding == b"deflate" else _GZIP_BITS
    if sum(map(len, parts)) < _LONG:
        return _deflate(parts, bits)
    return await asyncio.to_thread(_deflate, parts, bits)


def _deflate(parts: list[bytes | memoryview], bits: int) -> bytes:
    deflater = zlib.compressobj(_LEVEL, wbits=bits)
    return b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])
