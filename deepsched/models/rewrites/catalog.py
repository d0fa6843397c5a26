"""All rules, in the order in which they are applied, and the model that comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx
from onnx import numpy_helper

from deepsched.models.rewrites.affine import AFFINE
from deepsched.models.rewrites.gelu import GELU
from deepsched.models.rewrites.gemm import GEMM
from deepsched.models.rewrites.graph import Graph, ReadTensor
from deepsched.models.rewrites.hard_swish import HARD_SWISH
from deepsched.models.rewrites.lrn import LRN
from deepsched.models.rewrites.rule import Rule
from deepsched.models.rewrites.skip_layer_norm import SKIP_LAYER_NORM

# HARD_SWISH comes before AFFINE, which would take its division away.
RULES: tuple[Rule, ...] = (LRN, HARD_SWISH, AFFINE, GELU, SKIP_LAYER_NORM, GEMM)

# Before opset 7 operators broadcast by attributes.
_LOWEST_OPSET = 7


class Rewritten(NamedTuple):
    """What rules made of a model."""

    counts: dict[str, int]
    """How often each rule that fired replaced its pattern, by the rule's name."""
    config: dict[str, str]
    """Session config entries that the rewritten model needs."""


def rewrite(
    model: onnx.ModelProto, rules: Iterable[Rule], read: ReadTensor = numpy_helper.to_array
) -> Rewritten:
    """Applies rules to a model, in place.

    Args:
        read: gives an initializer's values, if they may be elsewhere.
    """
    graph = Graph(model, read)
    if graph.opset < _LOWEST_OPSET:
        return Rewritten({}, {})
    counts = {rule.name: rule.rewrite(graph) for rule in rules}
    graph.commit()
    config = {}
    if graph.disabled_optimizers:
        names = ";".join(sorted(graph.disabled_optimizers))
        config["optimization.disable_specified_optimizers"] = names
    return Rewritten({name: count for name, count in counts.items() if count}, config)
