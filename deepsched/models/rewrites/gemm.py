"""A product of two matrices and Relu as Gemm and Relu, which ONNX Runtime fuses into one operator.

It fuses Relu into Gemm (GemmActivationFusion), and makes a Gemm of MatMul and Add
(MatMulAddFusion), but leaves MatMul and Relu apart. Exact: both kernels call the same function of
MLAS with the same packed weights, and Relu is applied to its result. A MatMul into which ONNX
Runtime takes a factor or a transposition stays: the factor would be rounded elsewhere.
"""

from __future__ import annotations

from onnx import helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.rule import Rule


def _rewrite(graph: Graph) -> int:
    if graph.opset < 11 or graph.is_quantized:  # before 11, Gemm's third input is not optional
        return 0
    count = 0
    for relu in graph.of_type("Relu"):
        product = graph.inner(relu.input[0], "MatMul")
        if product is None or not graph.is_float(*product.input):
            continue
        weights = graph.shape(product.input[1])
        if graph.rank(product.input[0]) != 2 or weights is None or len(weights) != 2:
            continue
        if not graph.is_constant(product.input[1]) or 0 in weights:
            continue
        if _takes_more(graph, product.input[0]):
            continue
        graph.replace([product], [helper.make_node("Gemm", product.input, product.output)])
        count += 1
    return count


# ONNX Runtime removes them where they change nothing.
_MAY_VANISH = ("Cast", "Dropout", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")


def _takes_more(graph: Graph, x: str) -> bool:
    """Whether ONNX Runtime may take into a product what makes its first factor: a transposition, or
    a factor that is one constant number (MatmulTransposeFusion, MatMulScaleFusion)."""
    node = graph.producer(x, "Transpose", "Mul", "Div", "Add", "Sub", *_MAY_VANISH)
    if node is None:
        return graph.is_foreign(x)  # which may be such in a function
    if node.op_type in _MAY_VANISH:
        return _takes_more(graph, node.input[0])
    if node.op_type in ("Add", "Sub"):
        zeros = [graph.is_scalar(name, 0) for name in node.input]
        return any(zeros) and _takes_more(graph, node.input[zeros.index(False)])
    return node.op_type == "Transpose" or any(_may_be_a_number(graph, it) for it in node.input)


def _may_be_a_number(graph: Graph, name: str) -> bool:
    shape = graph.shape(name)
    return shape is None or all(size in (1, None) for size in shape)


GEMM = Rule("gemm", is_exact=True, rewrite=_rewrite)
