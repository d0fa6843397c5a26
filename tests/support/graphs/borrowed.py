"""Steps that others wrote: patterns that deepsched rewrites, the cases of onnx's own suite."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.support import rewrite_patterns
from tests.support.graphs.draft import Draft, Value

_PATTERNS = (
    rewrite_patterns.lrn,
    rewrite_patterns.hard_swish,
    rewrite_patterns.gelu,
    rewrite_patterns.gemm,
    rewrite_patterns.affine,
)

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform", "training", "dropout")


def pattern(draw: st.DrawFn, draft: Draft) -> None:
    found = draw(draw(st.sampled_from(_PATTERNS))())
    values = {name: draft.constant(array) for name, array in found.constants.items()}
    for name, sizes in found.inputs.items():
        fitting = [
            it
            for it in draft.values
            if it.is_tensor and it.dtype == np.float32 and it.sizes[1:] == tuple(sizes[1:])
        ]
        if fitting and draw(st.booleans()):
            values[name] = draw(st.sampled_from(fitting))
        else:
            values[name] = draft.new_input(np.dtype(np.float32), ["batch", *sizes[1:]])
    _embed(draft, found.nodes, values)


def case_of_onnx(draw: st.DrawFn, draft: Draft) -> None:
    """Its floats come from the graph or from a new input; all else is constant: an index must stay
    in range."""
    case = _cases()[draw(st.integers(0, len(_cases()) - 1))]
    model, (arrays, _) = case.model, case.data_sets[0]
    values = {
        tensor.name: draft.constant(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
    }
    for info, array in zip(model.graph.input, arrays, strict=False):
        fitting = [
            it
            for it in draft.values
            if it.is_tensor and it.dtype == array.dtype and it.shape == list(array.shape)
        ]
        if array.dtype.kind != "f" or draw(st.integers(0, 3)) == 0:
            values[info.name] = draft.constant(array)
        elif fitting and draw(st.booleans()):
            values[info.name] = draw(st.sampled_from(fitting))
        else:
            values[info.name] = draft.new_input(array.dtype, list(array.shape))
    _embed(draft, model.graph.node, values)


@cache
def _cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return [
        case
        for case in found
        if _are_small_tensors(case.data_sets[0][0])
        and not any(word.lower() in case.name for word in _RANDOM)
    ]


def _are_small_tensors(values: Any) -> bool:
    are_tensors = all(isinstance(it, np.ndarray) for it in values)
    return are_tensors and sum(it.size for it in values) < 20_000


def _embed(draft: Draft, nodes: Iterable[onnx.NodeProto], values: dict[str, Value]) -> None:
    """Adds copies of the nodes, whose names are new. Raises Refused."""
    names = {name: value.name for name, value in values.items()}
    for node in nodes:
        for name in node.output:
            if name:
                names[name] = draft.root.name("v")
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _rename(copy, names, draft)
        draft.add_node(copy)


def _rename(node: onnx.NodeProto, names: dict[str, str], draft: Draft) -> None:
    for part in (node.input, node.output):
        for index, name in enumerate(part):
            part[index] = names.get(name, name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            graph = attribute.g
            inner = dict(names)
            made = [name for it in graph.node for name in it.output if name]
            for name in itertools.chain(
                made, (it.name for it in graph.input), (it.name for it in graph.initializer)
            ):
                inner[name] = draft.root.name("v")
            for child in graph.node:
                _rename(child, inner, draft)
            for value in itertools.chain(graph.input, graph.output, graph.initializer):
                value.name = inner.get(value.name, value.name)
