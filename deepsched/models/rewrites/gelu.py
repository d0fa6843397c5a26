"""Gelu in the order of operators that ONNX Runtime has a fusion for.

    x * (0.5 * (1 + erf(x / sqrt(2))))  ->  (x * (1 + erf(x / sqrt(2)))) * 0.5

PyTorch's newer exporter writes the left one. ONNX Runtime (1.32, GeluFusion) knows the right one
and the one that halves x first. Not exact: the fused kernel rounds elsewhere.
"""

from __future__ import annotations

from onnx import NodeProto, helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.rule import Rule


def _rewrite(graph: Graph) -> int:
    return sum(_reorder(graph, last) for last in graph.of_type("Mul"))


def _reorder(graph: Graph, last: NodeProto) -> bool:
    for index in (0, 1):
        x, half = last.input[index], graph.inner(last.input[1 - index], "Mul")
        one_plus_erf = None if half is None else graph.with_scalar(half, 0.5)
        if half is None or one_plus_erf is None or not _is_one_plus_erf(graph, one_plus_erf, x):
            continue
        product = graph.new_name()
        factor = half.input[1] if half.input[0] == one_plus_erf else half.input[0]
        new = [
            helper.make_node("Mul", [x, one_plus_erf], [product]),
            helper.make_node("Mul", [product, factor], list(last.output)),
        ]
        graph.replace([half, last], new)
        return True
    return False


def _is_one_plus_erf(graph: Graph, name: str, x: str) -> bool:
    add = graph.inner(name, "Add")
    inner = None if add is None else graph.with_scalar(add, 1)
    erf = None if inner is None else graph.inner(inner, "Erf")
    scaled = None if erf is None else graph.inner(erf.input[0], "Div", "Mul")
    if scaled is None or not graph.is_float(x) or not graph.rank(x):
        return False
    if scaled.op_type == "Mul":
        return graph.with_scalar(scaled, 0.5**0.5) == x
    return scaled.input[0] == x and graph.is_scalar(scaled.input[1], 2**0.5)


GELU = Rule("gelu", is_exact=False, rewrite=_rewrite)
