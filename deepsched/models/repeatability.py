"""Which operators give other bits, for the same input, on another number of threads.

ONNX Runtime divides an operator's work by the number of threads. Mostly each output element is
computed in the same way wherever the cuts are. The operators here are the exceptions, as
`python -m bench.determinism` found them: it runs onnx's backend tests, and operators on large
inputs, on 1 to 6 threads, and fails if one varies that is not here. (onnxruntime 1.32, x86-64 with
AVX-512. Whether such an operator varies in a given model depends on its shapes, and on the CPU.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx

_ML = "ai.onnx.ml"
_MICROSOFT = "com.microsoft"


class Varying(NamedTuple):
    """Operators of a model whose bits vary; each once, sorted."""

    by_width: tuple[str, ...] = ()
    """With the number of threads."""
    by_run: tuple[str, ...] = ()
    """From run to run, too, on more than one thread."""
    random: tuple[str, ...] = ()
    """They draw random numbers: from run to run on any number of threads."""


class _Graph(NamedTuple):
    """What decides whether an operator varies, beside itself."""

    constants: dict[str, tuple[int, ...]]
    """Shapes of initializers."""
    has_doubles: bool

    def second_shape(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Of a node's second input, if that is an initializer. Nobody has checked yet that there
        is one."""
        return self.constants.get(node.input[1]) if len(node.input) > 1 else None


_When = Callable[["onnx.NodeProto", _Graph], bool]


def _always(node: onnx.NodeProto, graph: _Graph) -> bool:
    return True


def _with_doubles(node: onnx.NodeProto, graph: _Graph) -> bool:
    return graph.has_doubles


def _unpacked(node: onnx.NodeProto, graph: _Graph) -> bool:
    """The second factor is computed, so it is not packed: MLAS takes other loops for a narrow rest
    of its columns, and where the rest is depends on the cuts."""
    return graph.has_doubles or graph.second_shape(node) is None


def _unblocked(node: onnx.NodeProto, graph: _Graph) -> bool:
    """Channels that do not fill a vector: the convolution is a product with a computed matrix."""
    match graph.second_shape(node):
        case (num_out, num_in, *_):
            return num_in > 3 and (num_out % 8 > 0 or num_in % 8 > 0)
    return True


def _dequantized(node: onnx.NodeProto, graph: _Graph) -> bool:
    """Computed in float32, not in int8."""
    return attribute(node, "accuracy_level") != 4


def _reduces(node: onnx.NodeProto, graph: _Graph) -> bool:
    return attribute(node, "reduction") not in (None, b"none")


def _trains(node: onnx.NodeProto, graph: _Graph) -> bool:
    return len(node.input) > 2 and node.input[2] != ""


BY_WIDTH: dict[tuple[str, str], _When] = {
    **dict.fromkeys(
        [("", "MatMul"), ("", "Gemm"), (_MICROSOFT, "FusedMatMul"), (_MICROSOFT, "FusedGemm")],
        _unpacked,
    ),
    ("", "Einsum"): _always,  # a MatMul of what is computed
    ("", "Conv"): _unblocked,
    (_MICROSOFT, "FusedConv"): _unblocked,
    (_MICROSOFT, "MatMulNBits"): _dequantized,
    ("", "RNN"): _always,
    # Its scale is that of the rows that a thread has.
    (_MICROSOFT, "DynamicQuantizeLSTM"): _always,
    # Sums: what each thread has is added up.
    **dict.fromkeys([("", "ReduceSum"), ("", "ReduceMean"), ("", "LRN")], _always),
    **dict.fromkeys(
        [(_ML, f"TreeEnsemble{kind}") for kind in ("", "Regressor", "Classifier")], _always
    ),
    # Whole vectors are computed by another formula than the elements that are left at a cut.
    **dict.fromkeys(
        [("", name) for name in ("Celu", "Elu", "Log", "Mish", "Selu", "Softplus")], _always
    ),
    **dict.fromkeys([("", name) for name in ("Exp", "Sigmoid", "Swish", "Tanh")], _with_doubles),
}
"""Operators, by domain and name, and when they vary with the number of threads."""

BY_RUN: dict[tuple[str, str], _When] = {
    ("", "ScatterND"): _reduces,  # several threads change one element
}

RANDOM: dict[tuple[str, str], _When] = {
    **dict.fromkeys(
        [
            ("", name)
            for name in (
                "Bernoulli",
                "Multinomial",
                "RandomNormal",
                "RandomNormalLike",
                "RandomUniform",
                "RandomUniformLike",
            )
        ],
        _always,
    ),
    ("", "Dropout"): _trains,
}


def varying_operators(proto: onnx.ModelProto) -> Varying:
    """The operators of a model, in subgraphs and functions too, that may give other bits."""
    tensors = list(proto.graph.initializer)
    graph = _Graph(
        {tensor.name: tuple(tensor.dims) for tensor in tensors},
        _DOUBLE in [tensor.data_type for tensor in tensors]
        or _DOUBLE in [value.type.tensor_type.elem_type for value in proto.graph.input],
    )
    nodes = list(all_nodes(proto))
    return Varying(*(_found(nodes, graph, kind) for kind in (BY_WIDTH, BY_RUN, RANDOM)))


_DOUBLE = 11
"""TensorProto.DOUBLE."""


def _found(
    nodes: list[onnx.NodeProto], graph: _Graph, kind: dict[tuple[str, str], _When]
) -> tuple[str, ...]:
    names = set()
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        when = kind.get((domain, node.op_type))
        if when is not None and when(node, graph):
            names.add(node.op_type)
    return tuple(sorted(names))


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a model, in subgraphs and functions too."""
    todo = [*proto.graph.node, *itertools.chain.from_iterable(f.node for f in proto.functions)]
    while todo:
        node = todo.pop()
        yield node
        for attribute in node.attribute:
            todo.extend(attribute.g.node)
            todo.extend(itertools.chain.from_iterable(graph.node for graph in attribute.graphs))


def attribute(node: onnx.NodeProto, name: str) -> object:
    """The value of an integer or a string, as bytes; None if the node does not state it."""
    return next((it.s or it.i for it in node.attribute if it.name == name), None)
