"""HardSwish and HardSigmoid that exporters spell out, as HardSigmoid.

    clip(x + 3, 0, 6) / 6      ->  HardSigmoid(x; 1/6, 1/2)
    x * clip(x + 3, 0, 6) / 6  ->  x * HardSigmoid(x; 1/6, 1/2)

ONNX Runtime has no fusion for the long forms: four operators that pass over the whole tensor, in a
layout that the convolutions around them do not use. HardSigmoid keeps that layout, and becomes part
of the convolution before it. Not exact: the division comes first.
"""

from __future__ import annotations

from onnx import NodeProto, helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.nodes import attribute
from deepsched.models.rewrites.rule import Rule


def _rewrite(graph: Graph) -> int:
    return sum(_replace(graph, last) for last in graph.of_type("Div", "Mul"))


def _replace(graph: Graph, last: NodeProto) -> bool:
    scaled = _divided_by_six(graph, last)
    if scaled is None:
        return False
    y = last.output[0]
    sigmoid = _clip_of_sum(graph, scaled)
    if sigmoid is not None:
        x, nodes = sigmoid
        graph.replace([*nodes, last], [_hard_sigmoid(x, y)])
        return True
    product = graph.inner(scaled, "Mul")
    if product is None:
        return False
    for index in (0, 1):
        sigmoid = _clip_of_sum(graph, product.input[index])
        if sigmoid is not None and sigmoid[0] == product.input[1 - index]:
            x, nodes = sigmoid
            part = graph.new_name()
            new = [_hard_sigmoid(x, part), helper.make_node("Mul", [x, part], [y])]
            graph.replace([*nodes, product, last], new)
            return True
    return False


def _hard_sigmoid(x: str, y: str) -> NodeProto:
    return helper.make_node("HardSigmoid", [x], [y], alpha=1 / 6, beta=0.5)


def _divided_by_six(graph: Graph, node: NodeProto) -> str | None:
    if node.op_type == "Mul":
        return graph.with_scalar(node, 1 / 6)
    return node.input[0] if graph.is_scalar(node.input[1], 6) else None


def _clip_of_sum(graph: Graph, name: str) -> tuple[str, list[NodeProto]] | None:
    """(x, its nodes) of clip(x + 3, 0, 6), for whose steps nobody else has a use."""
    clip = graph.inner(name, "Clip")
    if clip is None or not _is_to_six(graph, clip):
        return None
    add = graph.inner(clip.input[0], "Add")
    x = None if add is None else graph.with_scalar(add, 3)
    # A constant of rank 1 would give a scalar another rank.
    if add is None or x is None or not graph.is_float(x) or not graph.rank(x):
        return None
    return x, [add, clip]


def _is_to_six(graph: Graph, clip: NodeProto) -> bool:
    if graph.opset < 11:
        return (attribute(clip, "min", None), attribute(clip, "max", None)) == (0, 6)
    limits = (*clip.input, "", "")[1:3]
    return graph.is_scalar(limits[0], 0) and graph.is_scalar(limits[1], 6)


HARD_SWISH = Rule("hard_swish", is_exact=False, rewrite=_rewrite)
