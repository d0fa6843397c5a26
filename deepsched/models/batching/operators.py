"""Operators whose answer for one item may depend on the others of its batch.

Made-up inputs show most of that, so this lists only what they may not show: ranges of values that
happen to be alike, random numbers, branches that are not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deepsched.models.repeatability import all_nodes, attribute, varying_operators

if TYPE_CHECKING:
    import onnx

_MICROSOFT = "com.microsoft"

_KNOWN_DOMAINS = frozenset(("", "ai.onnx.ml", _MICROSOFT))
"""Of operators that keep no state; those of others are in libraries, and nobody knows."""


def _always(node: onnx.NodeProto) -> bool:
    return True


def _trains(node: onnx.NodeProto) -> bool:
    """Its mean is that of the batch. Before opset 14, more than one output says so."""
    return attribute(node, "training_mode") == 1 or len(node.output) > 1


_SEEING: dict[tuple[str, str], Callable[[onnx.NodeProto], bool]] = {
    # One scale for the whole tensor.
    ("", "DynamicQuantizeLinear"): _always,
    (_MICROSOFT, "DynamicQuantizeMatMul"): _always,
    (_MICROSOFT, "DynamicQuantizeLSTM"): _always,
    ("", "BatchNormalization"): _trains,
    # How many they find depends on values: one item's may be taken for another's.
    ("", "Compress"): _always,
    ("", "NonMaxSuppression"): _always,
    ("", "NonZero"): _always,
    ("", "Unique"): _always,
    # One condition for all items, which may come from any of them.
    ("", "If"): _always,
    ("", "Loop"): _always,
}


def operators_that_see_the_batch(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names, sorted; those in subgraphs and functions too."""
    of_functions = {function.domain for function in proto.functions}
    found = set(varying_operators(proto).random)
    for node in all_nodes(proto):
        domain = "" if node.domain == "ai.onnx" else node.domain
        sees = _SEEING.get((domain, node.op_type))
        if sees is not None:
            if sees(node):
                found.add(node.op_type)
        elif domain not in _KNOWN_DOMAINS | of_functions:
            found.add(f"{domain}.{node.op_type}")
    return tuple(sorted(found))
