"""What a node states by itself: its attributes, and constants, as exporters write them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Up to here constants are worth computing with: the weights of one layer, not a table of words.
_MOST_ELEMENTS = 2**24

_READABLE = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def is_readable(tensor: onnx.TensorProto) -> bool:
    """Whether rules have a use for its values."""
    return tensor.data_type in _READABLE and math.prod(tensor.dims) <= _MOST_ELEMENTS


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value; `default` if the node does not state it."""
    for it in node.attribute:
        if it.name == name:
            return helper.get_attribute_value(it)
    return default


def _constant(node: onnx.NodeProto, _: list[Any]) -> np.ndarray[Any, Any] | None:
    for it in node.attribute:
        if it.name == "value":
            return numpy_helper.to_array(it.t) if is_readable(it.t) else None
        if it.name in _CONSTANT_TYPES:
            return np.array(helper.get_attribute_value(it), _CONSTANT_TYPES[it.name])
    return None


_CONSTANT_TYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _constant_of_shape(node: onnx.NodeProto, inputs: list[Any]) -> np.ndarray[Any, Any] | None:
    shape = inputs[0].tolist()
    value = attribute(node, "value", None)
    value = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    if math.prod(shape) > _MOST_ELEMENTS:
        return None
    return np.full(shape, value[0], value.dtype)


def _unsqueeze(node: onnx.NodeProto, inputs: list[Any]) -> np.ndarray[Any, Any]:
    axes = inputs[1].tolist() if len(inputs) > 1 else attribute(node, "axes", [])
    return np.expand_dims(inputs[0], tuple(axes))


def _reshape(node: onnx.NodeProto, inputs: list[Any]) -> np.ndarray[Any, Any] | None:
    shape = inputs[1].tolist()
    return None if 0 in shape else inputs[0].reshape(shape)


FOLDED = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": lambda _, inputs: inputs[0],
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
}
"""Operators whose output is worth computing if their inputs are constants: from a node and the
inputs' values to its value, or None."""
