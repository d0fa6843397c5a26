"""ONNX element types and the numpy dtypes that stand for them.

ml_dtypes, where it is installed, gives bfloat16 and the 8-, 4- and 2-bit types.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def _import_ml_dtypes() -> ModuleType | None:
    try:
        return import_module("ml_dtypes")
    except ImportError:
        return None


_ml_dtypes = _import_ml_dtypes()

STRING = 8

# By ONNXTensorElementDataType. The names are numpy's and ml_dtypes'. Not formatted: an enum of 26
# reads better in five lines than in 26.
_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "object", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "uint2", 25: "int2", 26: "float8_e8m0fnu",
}  # fmt: skip

# ORT packs these, the first element in the lowest bits; ml_dtypes has one element a byte.
BITS = {21: 4, 22: 4, 23: 4, 24: 2, 25: 2}


def name_of(element_type: int) -> str:
    """The name that a user knows an element type by."""
    if element_type == STRING:
        return "string"
    return _NAMES.get(element_type, f"ONNX element type {element_type}")


def dtype_of(element_type: int) -> np.dtype[Any] | None:
    """The numpy dtype of an element type; None where it needs an ml_dtypes that is not there."""
    name = _NAMES.get(element_type)
    if name is None:
        return None
    if element_type < 16:
        return np.dtype(name)
    return np.dtype(getattr(_ml_dtypes, name)) if hasattr(_ml_dtypes, name) else None


def pack(array: Array, bits: int) -> Array:
    """Packs a one-element-a-byte array into bytes of 8 // bits elements, shape dropped.

    >>> pack(np.array([1, 2, 3], np.uint8), 4)
    array([33,  3], dtype=uint8)
    """
    per_byte = 8 // bits
    flat = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    lanes = padded.reshape(-1, per_byte) << (np.arange(per_byte, dtype=np.uint8) * bits)
    packed: Array = np.bitwise_or.reduce(lanes, axis=1, dtype=np.uint8)
    return packed


def unpack(packed: Array, bits: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The inverse of pack.

    >>> unpack(np.array([33, 3], np.uint8), 4, (3,), np.dtype(np.uint8))
    array([1, 2, 3], dtype=uint8)
    """
    per_byte = 8 // bits
    lanes = packed[:, None] >> (np.arange(per_byte, dtype=np.uint8) * bits) & ((1 << bits) - 1)
    flat: Array = lanes.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].astype(np.uint8)
    if np.dtype(dtype).name in ("int4", "int2"):  # ml_dtypes keeps the sign in the upper bits
        sign = 1 << (bits - 1)
        flat = (flat ^ sign) - np.uint8(sign)
    return flat.view(dtype).reshape(shape)
