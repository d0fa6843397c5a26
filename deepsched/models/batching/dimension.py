"""Whether a model's inputs and outputs share one open first dimension, as far as its file tells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepsched.models.batch import batch_inputs
from deepsched.models.prepare import inputs_with_sizes, size_of

if TYPE_CHECKING:
    import onnx

_NUMBERS = frozenset(range(1, 14)) - {8} | {16}
"""Of TensorProto.DataType: numbers and booleans of a byte or more that numpy or ONNX Runtime's
callers have. Not 8, strings, which are no bytes to be put side by side."""

_MOST_VALUES = 64
"""As in runtime/batching.pxd."""

_MOST_OPEN = 2
"""Beside the batch: heights and widths, or a length."""

_UNNAMED = re.compile(r"unk__\d+|None")
"""tf2onnx numbers the dimensions that have no name."""


def why_not_shared(proto: onnx.ModelProto) -> str:
    """Empty if they may share one; trying it out tells.

    Args:
        proto: the model with open first dimensions as its file has them.
    """
    inputs = {value.name: sizes for value, sizes in inputs_with_sizes(proto)}
    if not inputs:
        return "the model has no inputs"
    if len(inputs) + len(proto.graph.output) > _MOST_VALUES:
        return f"the model has more than {_MOST_VALUES} inputs and outputs"
    for value, _ in inputs_with_sizes(proto):
        if not _is_of_numbers(value):
            return f"input {value.name!r} is no tensor of numbers"
    for name, sizes in inputs.items():
        if not sizes:
            return f"input {name!r} has no first dimension"
        if sum(not isinstance(size, int) for size in sizes[1:]) > _MOST_OPEN:
            return f"input {name!r} has too many open dimensions for inputs to be made up"
        if isinstance(sizes[0], int):
            return f"input {name!r} has a first dimension of {sizes[0]}, which is not open"
    symbols = sorted({str(sizes[0]) for sizes in inputs.values()})
    if len(symbols) > 1 and not all(map(_UNNAMED.fullmatch, symbols)):
        return f"first dimensions of inputs are different ones: {', '.join(symbols)}"
    if any(size in sizes[1:] for size in symbols for sizes in inputs.values()):
        return f"the first dimension, {symbols[0]!r}, is another one as well"
    if set(batch_inputs(inputs)) != set(inputs):
        return f"the first dimension, {symbols[0]!r}, is no batch"
    return _why_not_in_outputs(proto.graph.output)


def _why_not_in_outputs(outputs: Sequence[onnx.ValueInfoProto]) -> str:
    for value in outputs:
        if not _is_of_numbers(value):
            return f"output {value.name!r} is no tensor of numbers"
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            continue
        sizes = [size_of(dim) for dim in tensor.shape.dim]
        if not sizes or isinstance(sizes[0], int):
            return f"output {value.name!r} has no open first dimension"
    return ""


def _is_of_numbers(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind == "tensor_type" and value.type.tensor_type.elem_type in _NUMBERS
