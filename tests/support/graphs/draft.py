"""A graph under way, of which each value is known for two choices of the open sizes.

So a step needs no shape inference: plain onnxruntime runs each node as it is added, and what it
refuses is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import helper, numpy_helper

SYMBOLS = {"batch": (2, 3), "length": (5, 4)}
"""Sizes of the open dimensions in either world."""

WORLDS = (0, 1)

_MOST_ELEMENTS = 20_000

_OPSETS = {"ai.onnx.ml": 3, "com.microsoft": 1, "local": 1}


class Refused(Exception):
    """Plain onnxruntime does not take this node."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor, or a sequence of tensors as a list."""

    name: str
    samples: tuple[Any, Any]
    """In either world."""

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.samples[0], np.ndarray)

    @property
    def first(self) -> np.ndarray:
        return self.samples[0] if self.is_tensor else self.samples[0][0]

    @property
    def dtype(self) -> np.dtype:
        return self.first.dtype

    @property
    def rank(self) -> int:
        return self.first.ndim

    @property
    def sizes(self) -> tuple[int, ...]:
        """In the first world."""
        return self.first.shape

    @property
    def shape(self) -> list[int | str | None] | None:
        if not self.is_tensor or self.samples[0].ndim != self.samples[1].ndim:
            return None
        return [_dimension(pair) for pair in zip(*(it.shape for it in self.samples), strict=True)]

    def type_proto(self, has_shape: bool = True) -> onnx.TypeProto:
        tensor = helper.make_tensor_type_proto(
            elem_type(self.dtype), self.shape if has_shape else None
        )
        return tensor if self.is_tensor else helper.make_sequence_type_proto(tensor)

    def info(self, has_shape: bool = True) -> onnx.ValueInfoProto:
        return helper.make_value_info(self.name, self.type_proto(has_shape))


def _dimension(pair: tuple[int, int]) -> int | str | None:
    if pair[0] == pair[1]:
        return pair[0]
    return next((symbol for symbol, sizes in SYMBOLS.items() if sizes == pair), None)


def elem_type(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def to_tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    if array.dtype == object:
        strings = [text.encode() for text in array.ravel()]
        return helper.make_tensor(name, onnx.TensorProto.STRING, array.shape, strings)
    return numpy_helper.from_array(array, name)


def random_array(rng: np.random.Generator, dtype: np.dtype, sizes: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind == "O":
        return np.array(rng.choice(["", "a", "B c", "ÄÖ", "12"], sizes), dtype=object)
    if dtype.kind == "b":
        return np.asarray(rng.random(sizes) < 0.5)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0 if dtype.kind == "u" else -9, 10, sizes, dtype))
    return np.asarray(rng.standard_normal(sizes) * rng.choice([1, 1, 1, 30])).astype(dtype)


@dataclass
class Root:
    """What the subgraphs of a model share."""

    opset: int
    rng: np.random.Generator
    is_long: bool = False
    inputs: list[Value] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"


class Draft:
    """A graph, a subgraph, or the body of a function (`is_isolated`: it sees nothing outside)."""

    def __init__(self, root: Root, parent: Draft | None = None, is_isolated: bool = False) -> None:
        self.root = root
        self.parent = parent
        self.is_isolated = is_isolated
        self.nodes: list[onnx.NodeProto] = []
        self.made: list[Value] = []
        """What its nodes and its formal inputs are."""
        self.constants: dict[str, Value] = {}
        self.formal: list[Value] = []

    @property
    def rng(self) -> np.random.Generator:
        return self.root.rng

    @property
    def opset(self) -> int:
        return self.root.opset

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def values(self) -> list[Value]:
        """All that its nodes may use, but constants."""
        if self.is_isolated:
            return self.made
        outer = self.root.inputs if self.parent is None else self.parent.values
        return [*outer, *self.made]

    def _find(self, name: str) -> tuple[Value, bool]:
        """The value, and whether it is a constant."""
        if name in self.constants:
            return self.constants[name], True
        for value in self.values:
            if value.name == name:
                return value, False
        if self.parent is None or self.is_isolated:
            raise KeyError(name)
        return self.parent._find(name)

    def formal_input(self, samples: tuple[Any, Any]) -> Value:
        value = Value(self.root.name("f"), samples)
        self.formal.append(value)
        self.made.append(value)
        return value

    def new_input(self, dtype: np.dtype, shape: list[int | str]) -> Value:
        """Of the model; in a function's body, a constant in its place."""
        if self.is_isolated or (self.parent is not None and self._is_in_function()):
            sizes = [SYMBOLS[size][0] if isinstance(size, str) else size for size in shape]
            return self.constant(random_array(self.rng, dtype, tuple(sizes)))
        samples = [
            random_array(
                self.rng,
                dtype,
                tuple(SYMBOLS[it][world] if isinstance(it, str) else it for it in shape),
            )
            for world in WORLDS
        ]
        value = Value(self.root.name("x"), tuple(samples))
        self.root.inputs.append(value)
        return value

    def _is_in_function(self) -> bool:
        return self.is_isolated or (self.parent is not None and self.parent._is_in_function())

    def constant(self, array: Any) -> Value:
        array = np.asarray(array)
        same = [
            it
            for it in self.constants.values()
            if it.dtype == array.dtype and it.sizes == array.shape and array.dtype != object
        ]
        for value in same:
            if value.first.tobytes() == array.tobytes():
                return value
        value = Value(self.root.name("c"), (array, array))
        self.constants[value.name] = value
        return value

    def ints(self, *numbers: int) -> Value:
        return self.constant(np.array(numbers, np.int64))

    def add(
        self,
        op_type: str,
        inputs: list[Value | None],
        num_outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """A node and its outputs. Raises Refused."""
        names = [it.name if it is not None else "" for it in inputs]
        while names and names[-1] == "":
            names.pop()
        outputs = [self.root.name("v") for _ in range(num_outputs)]
        return self.add_node(helper.make_node(op_type, names, outputs, domain=domain, **attributes))

    def add_node(self, node: onnx.NodeProto) -> list[Value]:
        """Raises Refused."""
        used: dict[str, tuple[Value, bool]] = {}
        for name in _free_names([node]):
            used[name] = self._find(name)
        graph = helper.make_graph(
            [node],
            "step",
            [value.info() for value, is_constant in used.values() if not is_constant],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [to_tensor(it.first, it.name) for it, is_constant in used.values() if is_constant],
        )
        model = self.as_model(graph)
        samples = [
            _run(model, {it.name: it.samples[world] for it, fixed in used.values() if not fixed})
            for world in WORLDS
        ]
        found = []
        names = [name for name in node.output if name]
        for name, *pair in zip(names, *samples, strict=True):
            value = Value(name, tuple(pair))
            _check(value)
            found.append(value)
        self.nodes.append(node)
        self.made.extend(found)
        return found

    def as_model(self, graph: onnx.GraphProto, ir_version: int = 10) -> onnx.ModelProto:
        domains = {node.domain for node in _all_nodes(graph.node)}
        for function in self.root.functions:
            domains |= {node.domain for node in _all_nodes(function.node)}
        if self.root.functions:
            domains.add("local")
        imports = [
            helper.make_opsetid(domain, _OPSETS.get(domain, self.opset))
            for domain in sorted(domains | {""})
        ]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=ir_version,
            functions=self.root.functions,
        )

    def as_graph(self, outputs: list[Value], draw: st.DrawFn) -> onnx.GraphProto:
        """As a subgraph: its constants are initializers or nodes, as drawn."""
        initializers, nodes = [], []
        for name, value in self.constants.items():
            if draw(st.booleans()):
                nodes.append(constant_node(name, value.first))
            else:
                initializers.append(to_tensor(value.first, name))
        return helper.make_graph(
            [*nodes, *self.nodes],
            self.root.name("g"),
            [it.info() for it in self.formal],
            [it.info(has_shape=False) for it in outputs],
            initializers,
        )


def constant_node(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=to_tensor(array, ""))


def _check(value: Value) -> None:
    """Raises Refused for what a Value cannot be, or what is too large."""
    for sample in value.samples:
        parts = sample if isinstance(sample, list) else [sample]
        if not parts or not all(isinstance(it, np.ndarray) for it in parts):
            raise Refused(f"{value.name} is no tensor, or an empty sequence")
        if sum(it.size for it in parts) > _MOST_ELEMENTS:
            raise Refused(f"{value.name} is too large")


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return session.run(None, feeds)
    except Exception as error:  # onnxruntime's have no common base but this
        raise Refused(str(error)) from error


def _all_nodes(nodes: Any) -> list[onnx.NodeProto]:
    found = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            found.extend(_all_nodes(attribute.g.node))
    return found


def _free_names(nodes: Any) -> list[str]:
    """What nodes and their subgraphs use and do not make, each once."""
    made: set[str] = set()
    found: dict[str, None] = {}
    for node in nodes:
        names = list(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                graph = attribute.g
                inner = {it.name for it in [*graph.input, *graph.initializer]}
                inner |= {name for it in graph.node for name in it.output}
                names += [name for name in _free_names(graph.node) if name not in inner]
                names += [it.name for it in graph.output if it.name not in inner]
        found.update(dict.fromkeys(name for name in names if name and name not in made))
        made.update(node.output)
    return list(found)
