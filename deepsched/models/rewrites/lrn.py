"""LRN as a banded 1x1 convolution and square roots.

    y = x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels) ^ beta

ONNX Runtime's kernel calls powf for each element, and has been slower still since 1.21
(onnxruntime issue 26293). For beta = 0.75 the power is sqrt(s) * sqrt(sqrt(s)), whose operators
are vectorised, and the sum over neighbours is a matrix product. Measured on Inception-v1: sums of
slices are as fast on one core, but are copied by one thread only, AveragePool needs 1.18 times the
time, and Pow for the roots 1.08 times. Not exact: sums in another order, and roots for powf (1e-7
of the value). The band's zeros carry NaN and infinite squares to all channels of a pixel;
ONNX Runtime's running sum does so to those that follow.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.nodes import attribute
from deepsched.models.rewrites.rule import Rule

# The band costs channels^2 multiplications a pixel: 0.13 of the kernel's time for 64 channels, 0.43
# for 512, 0.81 for 1024 and 1.56 for 2048 (14x14 pixels, one core, AVX-512).
_MOST_CHANNELS = 1024


def _rewrite(graph: Graph) -> int:
    count = 0
    for node in graph.of_type("LRN"):
        shape = graph.shape(node.input[0])
        if not graph.is_float(node.input[0]) or shape is None or len(shape) != 4:
            continue
        channels = shape[1]
        has_roots = attribute(node, "beta", 0.75) == 0.75
        if not has_roots or channels is None or not 0 < channels <= _MOST_CHANNELS:
            continue
        graph.replace([node], _roots(graph, node, channels))
        count += 1
    return count


def _roots(graph: Graph, node: NodeProto, channels: int) -> list[NodeProto]:
    size = attribute(node, "size", 1)
    offsets = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = (offsets >= -((size - 1) // 2)) & (offsets <= size // 2)
    weights = (band * (attribute(node, "alpha", 1e-4) / size)).astype(np.float32)
    bias = np.full(channels, attribute(node, "bias", 1.0), np.float32)
    constants = [graph.add_constant(it) for it in (weights[:, :, None, None], bias)]
    (x,), (y,) = node.input, node.output
    square, total, root, fourth, power = (graph.new_name() for _ in range(5))
    return [
        helper.make_node("Mul", [x, x], [square]),
        helper.make_node("Conv", [square, *constants], [total], kernel_shape=[1, 1]),
        helper.make_node("Sqrt", [total], [root]),
        helper.make_node("Sqrt", [root], [fourth]),
        helper.make_node("Mul", [root, fourth], [power]),
        helper.make_node("Div", [x, power], [y]),
    ]


LRN = Rule("lrn", is_exact=False, rewrite=_rewrite)
