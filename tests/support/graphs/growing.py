"""Random models: which step comes next, and what of a draft becomes the model's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.support.graphs import borrowed, control_flow, elementwise, layers, layout, others
from tests.support.graphs.draft import (
    Draft,
    Refused,
    Root,
    Value,
    constant_node,
    to_tensor,
)

_KINDS = (
    (elementwise.STEPS, 3),
    (layout.STEPS, 3),
    (layers.STEPS, 3),
    (others.STEPS, 1),
    (control_flow.STEPS, 2),
)

_KIND_BY_WEIGHT = tuple(steps for steps, weight in _KINDS for _ in range(weight))

_WITH_BORROWED = (*_KIND_BY_WEIGHT, *[(borrowed.case_of_onnx,)] * 5, (borrowed.pattern,))


def grow(draw: st.DrawFn, draft: Draft, num_steps: int) -> None:
    """Adds up to so many steps; those that plain onnxruntime refuses are left out."""
    for _ in range(num_steps):
        steps = draw(st.sampled_from(_WITH_BORROWED if draft.root.is_long else _KIND_BY_WEIGHT))
        step: Any = draw(st.sampled_from(steps))
        try:
            if steps is control_flow.STEPS:
                step(draw, draft, grow)
            else:
                step(draw, draft)
        except Refused:
            continue


@dataclass
class RandomModel:
    proto: onnx.ModelProto
    inputs: list[Value]
    """Those that must be given."""

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.proto)

    @property
    def has_batch(self) -> bool:
        """Whether the batch comes first in every input."""
        return all((value.shape or [0])[:1] == ["batch"] for value in self.inputs) and bool(
            self.inputs
        )


@st.composite
def models(draw: st.DrawFn, is_long: bool = False) -> RandomModel:
    """
    Args:
        is_long: whether borrowed steps are among them; onnx's own cases take seconds to load.
    """
    opset = draw(st.integers(8, 26))
    root = Root(opset, np.random.default_rng(draw(st.integers(0, 99))), is_long)
    draft = Draft(root)
    grow(draw, draft, draw(st.integers(1, 12 if is_long else 8)))
    if not draft.made:
        draft.add("Identity", [draft.new_input(np.dtype(np.float32), ["batch", 3])])
    others = draw(st.lists(st.sampled_from(draft.made), max_size=2))
    outputs = list(dict.fromkeys(it.name for it in [*others, draft.made[-1]]))
    by_name = {it.name: it for it in draft.made}
    return _finish(draw, draft, [by_name[name] for name in outputs])


def _finish(draw: st.DrawFn, draft: Draft, outputs: list[Value]) -> RandomModel:
    """Constants as initializers, sparse ones, nodes, or defaults of inputs."""
    root = draft.root
    is_old = root.opset <= 9 and not root.functions and draw(st.booleans())
    initializers, sparse, nodes, defaults = [], [], [], []
    for name, value in draft.constants.items():
        where = draw(st.sampled_from(("initializer", "initializer", "node", "default", "sparse")))
        array = value.first
        if where == "node":
            nodes.append(constant_node(name, array))
        elif where == "sparse" and array.dtype == np.float32 and array.ndim == 2 and not is_old:
            sparse.append(_sparse(name, array))
        else:
            initializers.append(to_tensor(array, name))
            if where == "default" or is_old:  # IR version 3 lists each among the inputs
                defaults.append(value.info())
    has_shapes = draw(st.booleans())
    graph = helper.make_graph(
        [*nodes, *draft.nodes],
        "random",
        [*(it.info() for it in root.inputs), *defaults],
        [it.info(has_shapes) for it in outputs],
        initializers,
        sparse_initializer=sparse,
        value_info=[
            it.info()
            for it in draft.made
            if it.shape is not None and it not in outputs and draw(st.integers(0, 5)) == 0
        ],
    )
    ir_version = 3 if is_old else draw(st.sampled_from((8, 10)))
    return RandomModel(draft.as_model(graph, ir_version), list(root.inputs))


def _sparse(name: str, array: np.ndarray) -> onnx.SparseTensorProto:
    flat = array.ravel()
    (places,) = np.nonzero(flat)
    return helper.make_sparse_tensor(
        to_tensor(flat[places], name), to_tensor(places.astype(np.int64), ""), array.shape
    )
