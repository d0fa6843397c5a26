"""What onnx can tell of a graph's values without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with the types and shapes of inner values.

    None where onnx cannot tell: the graph contradicts itself, which ONNX Runtime may take, or it is
    above 2 GB.
    """
    import onnx

    # Of InferenceError, RuntimeError is the base in some versions, and what comes in its place in
    # others.
    failures = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except failures:
        return None
