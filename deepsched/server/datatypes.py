"""The protocol's names of element types, and numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepsched.errors import UnsupportedModelError

# Floats of a byte and less have no name in the protocol: theirs are made in its manner. Elements
# of less than a byte take one each, as in numpy.
_NAMES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "object": "BYTES",
    "float8_e4m3fn": "FP8_E4M3FN",
    "float8_e4m3fnuz": "FP8_E4M3FNUZ",
    "float8_e5m2": "FP8_E5M2",
    "float8_e5m2fnuz": "FP8_E5M2FNUZ",
    "float8_e8m0fnu": "FP8_E8M0FNU",
    "float4_e2m1fn": "FP4_E2M1FN",
    "int4": "INT4",
    "uint4": "UINT4",
    "int2": "INT2",
    "uint2": "UINT2",
    "complex64": "COMPLEX64",
    "complex128": "COMPLEX128",
}

BYTES = "BYTES"


def datatype_of(dtype: np.dtype[Any], what: str) -> str:
    """The protocol's name of a dtype.

    Args:
        dtype: of a model's input or output; object stands for strings.
        what: which, for the error.

    Raises:
        UnsupportedModelError: the protocol has none.

    Example:
        >>> datatype_of(np.dtype(np.float32), "input 'x'")
        'FP32'
    """
    try:
        return _NAMES[dtype.name]
    except KeyError:
        raise UnsupportedModelError(
            f"{what} has elements of {dtype}, which the inference protocol has no name for"
        ) from None


def dtype_of(datatype: str, what: str) -> np.dtype[Any]:
    """numpy's dtype of one of the protocol's names.

    Args:
        datatype: such as "FP32"; BYTES is object.
        what: of what, for the error.

    Raises:
        UnsupportedModelError: the name is unknown, or needs ml_dtypes, which is not installed.

    Example:
        >>> dtype_of("FP32", "input 'x'")
        dtype('float32')
    """
    for name, known in _NAMES.items():
        if known == datatype:
            try:
                return np.dtype(name)
            except TypeError:
                break
    raise UnsupportedModelError(
        f"{what} has elements of {datatype}, which numpy here has no type for"
    )


def config_type_of(datatype: str) -> str:
    """What a model's configuration calls it; TYPE_INVALID where it has no word.

    >>> config_type_of("BYTES"), config_type_of("FP8_E5M2")
    ('TYPE_STRING', 'TYPE_INVALID')
    """
    if datatype == BYTES:
        return "TYPE_STRING"
    return "TYPE_INVALID" if "_" in datatype or datatype in _NOT_IN_CONFIG else f"TYPE_{datatype}"


_NOT_IN_CONFIG = {"INT4", "UINT4", "INT2", "UINT2", "COMPLEX64", "COMPLEX128"}
