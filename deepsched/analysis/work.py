"""How much an operator does: pure functions of its type and of its shapes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class Shapes(NamedTuple):
    """Of one call of an operator."""

    inputs: Mapping[int, Shape]
    """By position; those that are not known are missing."""
    output: Shape
    """Of the first output."""


def operations(op_type: str, inputs: Mapping[int, Shape], output: Shape | None) -> int | None:
    """How many additions and multiplications one call does, whatever the type of the numbers.

    None where that is not known: most types do little beside moving memory, and have no count; for
    others a shape may be missing. Channels that ONNX Runtime has added to fill its blocks count.

    Args:
        inputs: shapes by position in the operator's definition.
        output: the shape of the first output.

    >>> operations("Conv", {0: (1, 3, 224, 224), 1: (64, 3, 7, 7)}, (1, 64, 112, 112))
    236027904
    >>> operations("MatMul", {0: (8, 128)}, (8, 10))
    20480
    """
    count = _COUNTS.get(op_type)
    if count is None or output is None or not inputs.keys().isdisjoint(_PASTS.get(op_type, ())):
        return None
    try:
        return count(Shapes(inputs, output))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def bytes_moved(op_type: str, activation_bytes: int, constant_bytes: int | None) -> int | None:
    """The least that one call reads and writes; None where that is not known.

    >>> bytes_moved("Add", 300, 100), bytes_moved("Reshape", 300, 8)
    (400, None)
    """
    if constant_bytes is None or op_type in _MOVES_LESS:
        return None
    return activation_bytes + constant_bytes


# Where attention has its keys and values of before, whose length would have to be known.
_PASTS = {"Attention": (4,), "MultiHeadAttention": (6, 7)}

# Those whose inputs cannot be told apart by their shapes.
NEED_POSITIONS = frozenset(_PASTS)

# These hand their input on as it is, take a few rows of it, or run other operators.
_MOVES_LESS = frozenset(
    [
        "Constant",
        "ConstantOfShape",
        "Dropout",
        "Flatten",
        "Gather",
        "GatherBlockQuantized",
        "GatherElements",
        "GatherND",
        "Identity",
        "If",
        "Loop",
        "Reshape",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "EmbedLayerNormalization",
    ]
)


def _convolution(weights: int) -> Callable[[Shapes], int]:
    def count(shapes: Shapes) -> int:
        # Output channels, input channels of a group, kernel.
        return 2 * prod(shapes.output) * prod(_of_rank(len(shapes.output), shapes, weights)[1:])

    return count


def _transposed_convolution(shapes: Shapes) -> int:
    # Each number of the input meets all kernels of its channel.
    return 2 * prod(shapes.inputs[0]) * prod(_of_rank(len(shapes.output), shapes, 1)[1:])


def _product(shapes: Shapes) -> int:
    """(rows x depth) times (depth x columns), perhaps transposed, perhaps many of them."""
    left, output = shapes.inputs[0], shapes.output
    if len(left) == 1:
        return 2 * prod(output) * left[0]
    if len(output) < len(left):  # times a vector: no columns
        return 2 * prod(output) * left[-1]
    # Whichever way round it lies, its last two sizes are the rows and the depth.
    return 2 * prod(output) * (left[-2] * left[-1] // output[-2])


def _recurrence(shapes: Shapes) -> int:
    # Input: steps and batch, in either order; weights of the input and of the state.
    steps, batch = shapes.inputs[0][:2]
    weights = prod(_of_rank(3, shapes, 1)) + prod(_of_rank(3, shapes, 2))
    return 2 * steps * batch * weights


def _attention(shapes: Shapes) -> int:
    """com.microsoft's Attention without a past: three projections in one, scores, their product."""
    batch, length, width = shapes.inputs[0]
    projections = _of_rank(2, shapes, 1)[1]
    return 2 * batch * length * (width * projections + 2 * length * projections // 3)


def _multi_head_attention(shapes: Shapes) -> int:
    batch, length, width = shapes.inputs[0]
    return 4 * batch * length * _of_rank(3, shapes, 1)[1] * width


def _of_rank(rank: int, shapes: Shapes, position: int) -> Shape:
    """Where constants are left out, another input stands in their place."""
    shape = shapes.inputs[position]
    if len(shape) != rank:
        raise ValueError(f"expected {rank} dimensions, got {shape}")
    return shape


_COUNTS: dict[str, Callable[[Shapes], int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger"), _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(
        (
            "MatMul",
            "FusedMatMul",
            "Gemm",
            "FusedGemm",
            "MatMulInteger",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
            "QLinearMatMul",
            "QGemm",
            "MatMulNBits",
        ),
        _product,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrence),
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}
