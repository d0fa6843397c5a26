"""A product of two matrices and Relu as Gemm and Relu, which ONNX Runtime fuses into one operator.

It fuses Relu into Gemm (GemmActivationFusion), and makes a Gemm of MatMul and Add
(MatMulAddFusion), but leaves MatMul and Relu apart. Exact: both kernels call the same function of
MLAS with the same packed weights, and Relu is applied to its result.
"""

from __future__ import annotations

from onnx import helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.rule import Rule


def _rewrite(graph: Graph) -> int:
    if graph.opset < 11:  # before, Gemm's third input is not optional
        return 0
    count = 0
    for relu in graph.of_type("Relu"):
        product = graph.inner(relu.input[0], "MatMul")
        if product is None or not graph.is_float(*product.input):
            continue
        weights = graph.shape(product.input[1])
        if graph.rank(product.input[0]) != 2 or weights is None or len(weights) != 2:
            continue
        if not graph.is_initializer(product.input[1]) or 0 in weights:
            continue
        graph.replace([product], [helper.make_node("Gemm", product.input, product.output)])
        count += 1
    return count


GEMM = Rule("gemm", is_exact=True, rewrite=_rewrite)
