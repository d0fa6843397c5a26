"""Arrays from raw bytes, and back: for REST's binary form, gRPC and shared memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsched.errors import InputError
from deepsched.server.datatypes import BYTES

Array = np.ndarray[Any, np.dtype[Any]]

_SMALL = 4096
MOST_DIMENSIONS = 32  # of numpy before 2.0
_MOST_COUNT = 2**63 // 16 - 1  # of numpy, by its largest elements; it takes sizes of 0 for 1 here

MOST_ELEMENTS = 2**20
"""Of a tensor that Python takes or gives element by element: for 0.1 to 0.5 s nobody else is
served."""


class TensorSpec(NamedTuple):
    """An input or output of a model, in the protocol's words."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """-1: any size."""
    position: int
    """In the engine's list of inputs or outputs."""
    is_optional: bool = False


def check_declared(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> int:
    """Checks what a request says of an input, and returns its number of elements.

    Raises:
        InputError: not what the model takes.
    """
    if datatype != spec.datatype:
        raise InputError(f"input {spec.name!r}: expected {spec.datatype}, got {datatype!r:.40}")
    if len(shape) > MOST_DIMENSIONS or (shape and min(shape) < 0):
        raise InputError(
            f"input {spec.name!r}: expected sizes of 0 and more in {MOST_DIMENSIONS} dimensions "
            f"at most, got {len(shape)}: {list(shape[:MOST_DIMENSIONS])!r:.80}"
        )
    count = math.prod(shape)
    if (count or math.prod(size or 1 for size in shape)) > _MOST_COUNT:
        raise InputError(f"input {spec.name!r}: no array has the shape {list(shape)!r:.80}")
    if spec.shape and not _fits(shape, spec.shape):  # (): onnxruntime's word for any rank, too
        raise InputError(
            f"input {spec.name!r}: expected shape {list(spec.shape)}, got {list(shape)}"
        )
    return count


def check_count(spec: TensorSpec, count: int) -> None:
    """For a form that is taken element by element.

    Raises:
        InputError: it has too many.
    """
    if count > MOST_ELEMENTS:
        raise InputError(
            f"input {spec.name!r}: expected at most {MOST_ELEMENTS} elements in this form, got "
            f"{count}; send less at once, or numbers as raw bytes"
        )


def _fits(shape: Sequence[int], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    if -1 not in expected:
        return tuple(shape) == expected
    return all(want in (-1, got) for got, want in zip(shape, expected, strict=True))


def from_raw(spec: TensorSpec, shape: Sequence[int], count: int, data: memoryview) -> Array:
    """The array of `count` elements that `data` holds, a view of it except for strings.

    Raises:
        InputError: it holds less or more.
    """
    if spec.datatype == BYTES:
        check_count(spec, count)
        return np.array(_strings_from_raw(spec.name, data, count), object).reshape(shape)
    dtype = spec.dtype
    buffer: bytes | memoryview = data
    if data.nbytes < _SMALL:
        buffer = data.tobytes()  # aligned, so that the engine does not have to copy it
    if data.nbytes != count * dtype.itemsize:
        raise InputError(
            f"input {spec.name!r}: expected {count * dtype.itemsize} bytes for {spec.datatype} "
            f"{list(shape)}, got {data.nbytes}"
        )
    array = np.frombuffer(buffer, dtype).reshape(shape) if count else np.empty(shape, dtype)
    if spec.datatype == "BOOL" and count and int(array.view(np.uint8).max()) > 1:
        raise InputError(f"input {spec.name!r}: expected bytes of 0 and 1 for BOOL, got others")
    return array


def _strings_from_raw(name: str, data: memoryview, count: int) -> list[bytes]:
    """Each is preceded by its length, of 4 bytes."""
    strings: list[bytes] = []
    at, end = 0, data.nbytes
    unpack = struct.Struct("<I").unpack_from
    while at + 4 <= end and len(strings) < count:
        start = at + 4
        at = start + unpack(data, at)[0]
        if at > end:
            raise InputError(
                f"input {name!r}: its string {len(strings)} should end at byte {at}, but there are "
                f"{end}"
            )
        strings.append(data[start:at].tobytes())
    if len(strings) != count or at != end:
        raise InputError(
            f"input {name!r}: expected {count} strings, each behind 4 bytes of its length, in "
            f"{end} bytes; got {len(strings)} strings in {at} bytes"
        )
    return strings


def to_raw(array: Array) -> bytes | memoryview:
    """An output's bytes, without a copy unless it holds strings or is small."""
    if array.dtype == object:
        return b"".join(
            part
            for text in array.flat
            for item in (text if isinstance(text, bytes) else encoded(text),)
            for part in (len(item).to_bytes(4, "little"), item)
        )
    if array.nbytes < _SMALL:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def encoded(text: str) -> bytes:
    """The bytes of a string that the engine returned."""
    return text.encode("utf-8", "surrogateescape")
