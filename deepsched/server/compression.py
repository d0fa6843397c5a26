"""gzip and deflate of HTTP bodies."""

from __future__ import annotations

import asyncio
import zlib

from deepsched.server.errors import RequestError, TooLarge

_GZIP_BITS = 31
_ZLIB_BITS = 15

# Below this, an answer gets longer.
_WORTH_BYTES = 1024

# From here on, others are served meanwhile: 1 ms or so.
_LONG = 32768

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
    if body.nbytes < _LONG:
        return _inflate(body, bits, max_bytes)
    return await asyncio.to_thread(_inflate, body, bits, max_bytes)


def _inflate(body: memoryview, bits: int, max_bytes: int) -> memoryview:
    inflater = zlib.decompressobj(bits)
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not of its Content-Encoding: {error}") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"the body has more than {max_bytes} bytes when decompressed")
    if not inflater.eof or inflater.unused_data:
        raise RequestError(
            "the body is not of its Content-Encoding: it does not end where it should"
        )
    return memoryview(plain)


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
