"""A model's large weights, left in its file or bytes while the graph around them is changed.

Parsing a model with its weights, changing a shape and serializing it again holds three copies of
them. So the graph is parsed without the bytes of large initializers. These stay where they are, and
ONNX Runtime gets them as external data, aligned, from a file that is written for it piece by piece.
It needs less memory that way than for weights inside of the model: it maps one after the other, and
drops the mapping once its kernel has packed the weights, where it would keep those of the model
until all are packed or, while it saves a model, until the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import blake3

from deepsched.errors import InvalidModelError

SMALLEST = 16 * 1024
"""Smaller initializers stay in the graph: ONNX Runtime and onnx look at their values."""

_ALIGNMENT = 4096
"""Of a mapping's start: a page. Kernels may read vectors at once."""

_CHUNK = 2**20

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE = 1
_GRAPH_INITIALIZER = 5
_NODE_OUTPUT = 2
_NODE_OP_TYPE = 4
_NODE_ATTRIBUTE = 5
_NODE_DOMAIN = 7
_ATTRIBUTE_NAME = 1
_ATTRIBUTE_TENSOR = 5
_TENSOR_DATA_TYPE = 2
_TENSOR_FLOAT_DATA = 4
_TENSOR_NAME = 8
_TENSOR_RAW_DATA = 9
_TENSOR_DOUBLE_DATA = 10
_TENSOR_EXTERNAL_DATA = 13

_DATA = {_TENSOR_RAW_DATA: None, _TENSOR_FLOAT_DATA: 1, _TENSOR_DOUBLE_DATA: 11}
"""Fields with a tensor's data as it lies in memory, and for which TensorProto.DataType."""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf. The others are groups, which ONNX has none of."""


class Place(NamedTuple):
    """Where the bytes of a large initializer are."""

    initializer: int
    """Which of the graph's."""
    offset: int
    """In the model."""
    num_bytes: int


class LargeWeights:
    """The large initializers of a model, as `split` found them.

    Keeps the model's file open: replacing it by another one changes nothing here.
    """

    def __init__(self, origin: _Origin, places: list[Place]) -> None:
        self._origin = origin
        self.places = places

    def without(self) -> LargeWeights:
        """None of them."""
        return LargeWeights(self._origin, [])

    @property
    def in_memory(self) -> bytes | None:
        """The bytes of the whole model, if it was given as bytes; `places` are offsets in it."""
        return self._origin.data

    def read(self, place: Place) -> bytes:
        """The bytes of one of them; raises InvalidModelError, see write."""
        return self._origin.read(place.offset, place.num_bytes)

    def write(self, path: Path) -> list[int]:
        """Writes them to a new file, aligned; returns their offsets there.

        Raises:
            OSError: it cannot be written.
            InvalidModelError: the model's file has changed since it was split.
        """
        offsets = []
        with open(path, "xb", buffering=0) as file:
            for place in self.places:
                offsets.append(file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR))
                for start in range(0, place.num_bytes, _CHUNK):
                    left = min(_CHUNK, place.num_bytes - start)
                    _write_all(file.fileno(), self._origin.read(place.offset + start, left))
        self._origin.check_unchanged()
        return offsets

    def checksum(self) -> str:
        """Of their bytes and sizes."""
        hasher = blake3.blake3()
        for place in self.places:
            hasher.update(place.num_bytes.to_bytes(8))
            for start in range(0, place.num_bytes, _CHUNK):
                left = min(_CHUNK, place.num_bytes - start)
                hasher.update(self._origin.read(place.offset + start, left))
        return hasher.hexdigest()

    def put_back(self, graph: bytes) -> bytes:
        """The whole model, with this graph.

        Raises:
            InvalidModelError: above 2 GB, or the model's file has changed since it was split.
        """
        import onnx

        proto = onnx.load_from_string(graph)
        for place in self.places:
            tensor = proto.graph.initializer[place.initializer]
            tensor.raw_data = self.read(place)
        self._origin.check_unchanged()
        return bytes(proto.SerializeToString(deterministic=True))

    def refer_to(self, graph: bytes, file_name: str, offsets: list[int]) -> bytes:
        """`graph` with these weights as external data, at `offsets` in the file of that name."""
        import onnx

        proto = onnx.load_from_string(graph)
        for place, offset in zip(self.places, offsets, strict=True):
            tensor = proto.graph.initializer[place.initializer]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", file_name),
                ("offset", str(offset)),
                ("length", str(place.num_bytes)),
            ):
                tensor.external_data.add(key=key, value=value)
        return bytes(proto.SerializeToString(deterministic=True))


def split(model: str | bytes) -> tuple[bytes, LargeWeights]:
    """A model, a path or serialized, without the bytes of its large initializers; and these.

    Large values of Constant nodes become initializers: ONNX Runtime does the same.

    Raises:
        ValueError: it is damaged, or no ONNX model at all.
        OSError: its file cannot be read.
    """
    origin = _Origin(model)
    kept: list[bytes] = []
    places: list[Place] = []
    num_initializers = 0
    for field in _fields(origin, 0, origin.size):
        if field.number != _MODEL_GRAPH or field.wire_type != _LENGTH_DELIMITED:
            kept.append(origin.read(field.begin, field.end - field.begin))
            continue
        graph: list[bytes] = []
        begin = field.value  # of what is kept as it is, and has not been copied yet
        for part in _fields(origin, field.value, field.end):
            if part.wire_type != _LENGTH_DELIMITED:
                continue
            is_large = part.end - part.value >= SMALLEST
            tensor, name = part, b""
            if part.number == _GRAPH_NODE and is_large and (found := _constant(origin, part)):
                tensor, name = found
            elif part.number != _GRAPH_INITIALIZER:
                continue
            raw = _large_data(origin, tensor) if is_large else None
            if raw is not None:
                places.append(Place(num_initializers, raw.value, raw.end - raw.value))
                rest = origin.read(tensor.value, raw.begin - tensor.value)
                rest += origin.read(raw.end, tensor.end - raw.end) + name
                graph.append(origin.read(begin, part.begin - begin))
                graph.append(_length_delimited(_GRAPH_INITIALIZER, rest))
                begin = part.end
            num_initializers += raw is not None or part.number == _GRAPH_INITIALIZER
        graph.append(origin.read(begin, field.end - begin))
        # Several pieces of one message are merged by whoever parses them.
        kept.append(_length_delimited(_MODEL_GRAPH, b"".join(graph)))
    return b"".join(kept), LargeWeights(origin, places)


class _Origin:
    """A model's file, or its bytes."""

    def __init__(self, model: str | bytes) -> None:
        self.data = None if isinstance(model, str) else model
        self._fd = -1
        if isinstance(model, str):
            # A pipe has no reader to wait for.
            self._fd = os.open(model, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("no regular file")
            self._state = _state(found)
            self.size = found.st_size
        else:
            self.size = len(model)
        self._window, self._window_begin = b"", 0

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, offset: int, num_bytes: int) -> bytes:
        if self.data is not None:
            return self.data[offset : offset + num_bytes]
        parts = []
        while num_bytes:
            part = os.pread(self._fd, num_bytes, offset)
            if not part:
                raise _changed()
            parts.append(part)
            offset, num_bytes = offset + len(part), num_bytes - len(part)
        return b"".join(parts)

    def peek(self, offset: int) -> tuple[bytes, int]:
        """Some bytes around the offset, and where it is in them: at least 16 follow, if there are.

        For fields, most of which are small and follow each other.
        """
        if self.data is not None:
            return self.data, offset
        at = offset - self._window_begin
        if not 0 <= at <= len(self._window) - 16:
            self._window_begin = offset
            self._window = self.read(offset, min(64 * 1024, self.size - offset))
            at = 0
        return self._window, at

    def check_unchanged(self) -> None:
        if self._fd >= 0 and _state(os.fstat(self._fd)) != self._state:
            raise _changed()


def _changed() -> InvalidModelError:
    return InvalidModelError("the model's file was written to while it was read; open it again")


def _state(found: os.stat_result) -> tuple[int, int]:
    """Without the inode's own time, which changes when the file is replaced by another as well."""
    return found.st_size, found.st_mtime_ns


class _Field(NamedTuple):
    """A field of a message: where its tag, its value and the next field begin."""

    number: int
    wire_type: int
    begin: int
    value: int
    end: int


def _fields(origin: _Origin, begin: int, end: int) -> Iterator[_Field]:
    """The fields of the message there; raises ValueError."""
    while begin < end:
        tag, value = _varint(origin, begin)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, value = _varint(origin, value)
            following = value + length
        elif wire_type == _VARINT:
            following = _varint(origin, value)[1]
        elif wire_type in (_FIXED64, _FIXED32):
            following = value + (8 if wire_type == _FIXED64 else 4)
        else:
            raise ValueError(f"no field begins at byte {begin}")
        if following > end:
            raise ValueError(f"the field at byte {begin} is cut off")
        yield _Field(tag >> 3, wire_type, begin, value, following)
        begin = following


def _varint(origin: _Origin, offset: int) -> tuple[int, int]:
    """The number there, and where the next begins."""
    data, at = origin.peek(offset)
    number = 0
    for index, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, offset + index + 1
    raise ValueError(f"no number at byte {offset}")


def _constant(origin: _Origin, node: _Field) -> tuple[_Field, bytes] | None:
    """The tensor of a Constant node, and the field that names it as an initializer; None: it is
    another node, or has another value."""
    fields = list(_fields(origin, node.value, node.end))
    outputs, attributes = _of(fields, _NODE_OUTPUT), _of(fields, _NODE_ATTRIBUTE)
    texts = [_texts(origin, _of(fields, number)) for number in (_NODE_OP_TYPE, _NODE_DOMAIN)]
    if texts not in ([[b"Constant"], []], [[b"Constant"], [b""]]):
        return None
    if (len(outputs), len(attributes)) != (1, 1):
        return None
    attribute = list(_fields(origin, attributes[0].value, attributes[0].end))
    tensors = _of(attribute, _ATTRIBUTE_TENSOR)
    if _texts(origin, _of(attribute, _ATTRIBUTE_NAME)) != [b"value"] or len(tensors) != 1:
        return None
    # Of several names of one message, the last counts.
    return tensors[0], _length_delimited(_TENSOR_NAME, *_texts(origin, outputs))


def _of(fields: list[_Field], number: int) -> list[_Field]:
    return [it for it in fields if (it.number, it.wire_type) == (number, _LENGTH_DELIMITED)]


def _texts(origin: _Origin, fields: list[_Field]) -> list[bytes]:
    return [origin.read(it.value, it.end - it.value) for it in fields]


def _large_data(origin: _Origin, tensor: _Field) -> _Field | None:
    """The data of a tensor that has a single piece of it, as it lies in memory, if it is large."""
    fields = list(_fields(origin, tensor.value, tensor.end))
    types = [_varint(origin, it.value)[0] for it in fields if it.number == _TENSOR_DATA_TYPE]
    data = [it for it in fields if it.number in (*_DATA, _TENSOR_EXTERNAL_DATA)]
    if len(data) != 1 or data[0].wire_type != _LENGTH_DELIMITED:
        return None
    (only,) = data
    if only.number not in _DATA or _DATA[only.number] not in (None, *types[-1:]):
        return None
    return only if only.end - only.value >= SMALLEST else None


def _length_delimited(number: int, value: bytes) -> bytes:
    return _encode(number << 3 | _LENGTH_DELIMITED) + _encode(len(value)) + value


def _encode(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
