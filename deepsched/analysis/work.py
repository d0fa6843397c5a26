"""Operation counts and memory traffic of operators: pure functions of type, shapes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

from deepsched.analysis.reading import Shape


class CallShapes(NamedTuple):
    """CallShapes of the tensors of one call of an operator."""

    inputs: Mapping[int, Shape]
    """By position; unknown ones are missing."""
    output: Shape
    """Of the first output."""


def operations(op_type: str, inputs: Mapping[int, Shape], output: Shape | None) -> int | None:
    """Number of additions and multiplications in one call, whatever the type of the numbers.

    None if unknown: types that mostly move memory have no count, and for others a shape may be
    missing. Channels that ONNX Runtime adds to fill its blocks count.

    Args:
        op_type: the operator's type.
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
        return count(CallShapes(inputs, output))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def bytes_moved(op_type: str, activation_bytes: int, constant_bytes: int | None) -> int | None:
    """Minimum memory traffic of one call in bytes: each tensor once; None if unknown.

    >>> bytes_moved("Add", 300, 100), bytes_moved("Reshape", 300, 8)
    (400, None)
    """
    if constant_bytes is None or op_type in _MOVES_LESS:
        return None
    return activation_bytes + constant_bytes


# Positions of the past keys and values of attention: with these, counts depend on their length.
_PASTS = {"Attention": (4,), "MultiHeadAttention": (6, 7)}

# Types whose inputs cannot be identified by their shapes.
NEED_POSITIONS = frozenset(_PASTS)

# Types that return their input unchanged, touch a part of it only, or run other operators.
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


def _convolution(weights: int) -> Callable[[CallShapes], int]:
    def count(shapes: CallShapes) -> int:
        # Weights: output channels, input channels of a group, kernel size.
        return 2 * prod(shapes.output) * prod(_of_rank(len(shapes.output), shapes, weights)[1:])

    return count


def _transposed_convolution(shapes: CallShapes) -> int:
    # Each input element is multiplied with all kernels of its channel.
    return 2 * prod(shapes.inputs[0]) * prod(_of_rank(len(shapes.output), shapes, 1)[1:])


def _product(shapes: CallShapes) -> int:
    """(rows x depth) times (depth x columns), possibly transposed or batched."""
    left, output = shapes.inputs[0], shapes.output
    if len(left) == 1:
        return 2 * prod(output) * left[0]
    if len(output) < len(left):  # times a vector: no columns in the output
        return 2 * prod(output) * left[-1]
    # Transposed or not, the last two sizes of the left matrix are rows and depth.
    return 2 * prod(output) * (left[-2] * left[-1] // output[-2])


def _recurrence(shapes: CallShapes) -> int:
    # Input: steps and batch in either order. Weights: of the input, and of the state.
    steps, batch = shapes.inputs[0][:2]
    weights = prod(_of_rank(3, shapes, 1)) + prod(_of_rank(3, shapes, 2))
    return 2 * steps * batch * weights


def _attention(shapes: CallShapes) -> int:
    """com.microsoft.Attention without a past: the Q, K and V projections, then QK and (QK)V."""
    batch, length, width = shapes.inputs[0]
    projections = _of_rank(2, shapes, 1)[1]
    return 2 * batch * length * (width * projections + 2 * length * projections // 3)


def _multi_head_attention(shapes: CallShapes) -> int:
    batch, length, width = shapes.inputs[0]
    return 4 * batch * length * _of_rank(3, shapes, 1)[1] * width


def _of_rank(rank: int, shapes: CallShapes, position: int) -> Shape:
    """The shape of an input, which must have this rank.

    Since profiles omit constants, another input may be in its position.
    """
    shape = shapes.inputs[position]
    if len(shape) != rank:
        raise ValueError(f"expected {rank} dimensions, got {shape}")
    return shape


_COUNTS: dict[str, Callable[[CallShapes], int]] = {
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
