"""Arrays from the numbers and strings of JSON, and back."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import orjson
import simdjson

from deepsched.errors import InputError
from deepsched.server.datatypes import BYTES
from deepsched.server.errors import RequestError
from deepsched.server.tensors import MOST_DIMENSIONS, MOST_ELEMENTS, Array, TensorSpec

# From this length on, lists of Python's numbers take longer than a parser of its own.
_LONG = 2048

# Each takes as long as several elements.
_MOST_LISTS = MOST_ELEMENTS // 8

_SMALL_INTEGERS = ("INT4", "UINT4", "INT2", "UINT2")

_decode = msgspec.json.Decoder().decode


def from_json(spec: TensorSpec, shape: Sequence[int], count: int, data: msgspec.Raw) -> Array:
    """The array that JSON gives as a list, flat or nested.

    Raises:
        InputError: not a list of `count` elements of the input's type.
    """
    text = memoryview(data)
    if text.nbytes > _LONG and spec.dtype.kind in "iuf":
        values = _long(spec, text)
    else:
        check_items(f"input {spec.name!r}", text)
        try:
            values = _short(spec, _decode(text))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(_complaint(spec, str(error))) from None
    if values.size != count:
        raise InputError(
            f"input {spec.name!r}: expected {count} elements for shape {list(shape)}, got "
            f"{values.size}"
        )
    return values.reshape(shape)


_PARSED: dict[str, tuple[Any, Any]]
_PARSED = {"i": ("i", np.int64), "u": ("u", np.uint64), "f": ("d", np.float64)}
"""simdjson's types and numpy's, by the kind of the dtype."""


def _long(spec: TensorSpec, text: memoryview) -> Array:
    kind, wide = _PARSED[spec.dtype.kind]
    try:
        array: Any = simdjson.Parser().parse(text)
        values = np.frombuffer(array.as_buffer(of_type=kind), wide)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(_complaint(spec, str(error))) from None
    return _narrowed(spec, values)


def _short(spec: TensorSpec, data: Any) -> Array:
    if not isinstance(data, list):
        raise InputError(_complaint(spec, reprlib.repr(data)))
    flat: list[Any] = []
    _flatten(data, flat)
    if spec.datatype == BYTES:
        _check_kinds(spec, flat, str)
        values = np.empty(len(flat), object)
        values[:] = flat
        return values
    if spec.dtype == np.bool_:
        _check_kinds(spec, flat, bool)
        return np.array(flat, np.bool_)
    if spec.dtype.kind in "iu" or spec.datatype in _SMALL_INTEGERS:
        _check_kinds(spec, flat, int)
        try:
            return _narrowed(
                spec, np.array(flat, np.uint64 if spec.dtype.kind == "u" else np.int64)
            )
        except OverflowError:
            raise InputError(_complaint(spec, "a number beyond its range")) from None
    if spec.dtype.kind == "c":
        raise InputError(f"input {spec.name!r}: {spec.datatype} has no form in JSON; send it raw")
    _check_kinds(spec, flat, int, float)
    try:
        return _narrowed(spec, np.array(flat, np.float64))
    except OverflowError:
        raise InputError(_complaint(spec, "a number beyond its range")) from None


def _flatten(data: list[Any], flat: list[Any]) -> None:
    if not any(type(item) is list for item in data):
        flat.extend(data)
        return
    for item in data:
        if type(item) is list:
            _flatten(item, flat)  # as deep as the parser of JSON lets it be
        else:
            flat.append(item)


def _check_kinds(spec: TensorSpec, flat: list[Any], *kinds: type) -> None:
    for kind in set(map(type, flat)):
        if kind not in kinds:
            wrong = next(item for item in flat if type(item) is kind)
            raise InputError(_complaint(spec, reprlib.repr(wrong)))


def _narrowed(spec: TensorSpec, values: Array) -> Array:
    if values.dtype == spec.dtype:
        return values
    if spec.dtype.kind in "iu" and values.size:
        low, high = int(values.min()), int(values.max())
        limits = np.iinfo(spec.dtype)
        if low < limits.min or high > limits.max:
            wrong = low if low < limits.min else high
            raise InputError(_complaint(spec, str(wrong)))
    with np.errstate(over="ignore"):  # infinite in the narrower type, as in numpy
        return values.astype(spec.dtype)


def _complaint(spec: TensorSpec, got: str) -> str:
    return f"input {spec.name!r}: expected a list of {spec.datatype} as 'data', got {got}"


def check_items(what: str, text: memoryview) -> None:
    """For JSON whose lists become Python's.

    Raises:
        InputError: it may hold more elements and lists than are taken.
    """
    if text.nbytes > _MOST_LISTS:
        plain = text.tobytes()
        for sign, most in ((b",", MOST_ELEMENTS), (b"[", _MOST_LISTS)):
            if (count := plain.count(sign)) > most:
                raise InputError(
                    f"{what}: expected at most {most} times {sign.decode()!r} in this form, got "
                    f"{count}; send less at once, or numbers as raw bytes"
                )


def from_values(spec: TensorSpec, values: Any) -> Array:
    """The array of nested lists, whose shape is the lists'.

    Raises:
        InputError: lists of different lengths, or elements that are not of the input's type.
    """
    shape: list[int] = []
    level = [values]  # all that is at one depth
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(type(item) is not list or len(item) != size for item in level):
            raise _uneven(spec)
        if len(shape) == MOST_DIMENSIONS:
            raise InputError(
                f"input {spec.name!r}: expected nested lists of {MOST_DIMENSIONS} levels at most"
            )
        shape.append(size)
        level = list(chain.from_iterable(level))
    if any(type(item) is list for item in level):
        raise _uneven(spec)
    return _short(spec, level).reshape(shape)


def _uneven(spec: TensorSpec) -> InputError:
    return InputError(
        f"input {spec.name!r}: expected nested lists of one length by level, got others"
    )


def to_json(spec: TensorSpec, array: Array, is_nested: bool = False) -> msgspec.Raw:
    """An output as a flat list; `is_nested`: in lists by dimension.

    Raises:
        RequestError: JSON has no form for what it holds.
    """
    shaped = array if is_nested else array.reshape(-1)
    kind = shaped.dtype.kind
    if shaped.dtype == object:
        try:
            return msgspec.Raw(orjson.dumps(shaped.tolist()))
        except TypeError:
            raise _no_form(spec, "strings that are not UTF-8") from None
    if kind == "c":
        raise _no_form(spec, "complex numbers")
    if spec.datatype in _SMALL_INTEGERS:
        shaped = shaped.astype(np.int8)
    elif kind not in "iub" and shaped.dtype != np.float64:
        shaped = shaped.astype(np.float32, copy=False)
    if shaped.dtype.kind == "f" and not np.isfinite(shaped).all():
        raise _no_form(spec, "NaN or infinity")
    if not shaped.ndim:
        return msgspec.Raw(orjson.dumps(shaped.tolist()))
    return msgspec.Raw(orjson.dumps(shaped, option=orjson.OPT_SERIALIZE_NUMPY))


def _no_form(spec: TensorSpec, what: str) -> RequestError:
    return RequestError(
        f"output {spec.name!r} holds {what}, which JSON has no form for; ask for it with the "
        "parameter 'binary_data'"
    )
