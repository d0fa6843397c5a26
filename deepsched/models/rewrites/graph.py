"""A model's main graph as rules see it: who makes and who uses a value, constants, types, shapes.

Rules work on the protobuf itself, which is changed in place: no weight is copied, and a constant is
read only when a rule asks for it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from deepsched.lazy import cached_property
from deepsched.models.repeatability import all_nodes
from deepsched.models.rewrites.nodes import FOLDED, is_readable
from deepsched.models.rewrites.option import MOST_COPIED
from deepsched.models.shape_inference import infer_shapes

FLOAT = onnx.TensorProto.FLOAT

# A larger tensor is no parameter of a shape, and shape inference can do without its values.
_MOST_ELEMENTS_FOR_SHAPES = 64


ReadTensor = Callable[[onnx.TensorProto], np.ndarray[Any, Any]]


class ValueType(NamedTuple):
    """What is known of a value before any run."""

    elem_type: int
    """As in TensorProto.DataType."""
    shape: tuple[int | None, ...]
    """None for open sizes."""


_LARGE = 2**16
"""Constants of more bytes are read anew each time, and not held."""


class Graph:
    """Values are named as in the model; the empty name is an optional input that is missing.

    Nodes inside of subgraphs are not offered to rules. They count as users of outer values.
    """

    def __init__(self, model: onnx.ModelProto, read: ReadTensor) -> None:
        """`read`: gives an initializer's values, which may be elsewhere."""
        self.model = model
        self.opset = next((it.version for it in model.opset_import if it.domain in _ONNX), 0)
        self.disabled_optimizers: set[str] = set()
        self._read_initializer = read
        self._producers: dict[str, onnx.NodeProto] = {}
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        # What stands in the place of each node that the model had.
        self._order: list[list[onnx.NodeProto]] = [[node] for node in model.graph.node]
        self._places: dict[int, list[onnx.NodeProto]] = {}
        for place in self._order:
            self._enter(place[0], place)
        # Values that someone may see whom no rule knows of.
        self._visible = {value.name for value in model.graph.output}
        for node in self._nodes():
            self._visible.update(_names_in_subgraphs(node))
        inputs = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
        self._initializers = {
            it.name: it for it in model.graph.initializer if it.name not in inputs
        }
        self._constants: dict[str, np.ndarray[Any, Any] | None] = {}
        self._num_new = 0
        self._copied_bytes = 0

    @cached_property
    def _types(self) -> dict[str, ValueType]:
        """Inferred only if the model has an operator that a rule looks for."""
        return infer_types(copy_without_weights(self.model))

    @cached_property
    def _taken(self) -> set[str]:
        """All names of values, those inside of subgraphs included."""
        inner = (name for node in self._nodes() for name in _outputs_in_subgraphs(node))
        return {*self._types, *self._producers, *self._users, *self._visible, *inner}

    # --- Looking ------------------------------------------------------------------------------

    def of_type(self, *op_types: str) -> Iterator[onnx.NodeProto]:
        """Nodes of ONNX's own operators, in topological order; a rule may replace them."""
        for node in list(self._nodes()):
            if self.is_of_type(node, *op_types):
                yield node

    def is_of_type(self, node: onnx.NodeProto, *op_types: str) -> bool:
        """Whether a node is still there, is one of ONNX's own operators of these types, and has the
        inputs that it must have."""
        is_there = node.output and self._producers.get(node.output[0]) is node
        is_own = node.domain in _ONNX and node.op_type in op_types
        return bool(is_there and is_own and len(node.input) >= _FEWEST_INPUTS.get(node.op_type, 1))

    @property
    def is_quantized(self) -> bool:
        """Whether parts of it are quantized. To the weights of a Conv or Gemm between those, ONNX
        Runtime does the same (1.32, WeightBiasQuantization), so rules must not make such."""
        return any(node.op_type == "DequantizeLinear" for node in all_nodes(self.model))

    def is_foreign(self, name: str) -> bool:
        """Whether a function of the model makes it, or an operator that is none of ONNX's own."""
        node = self._producers.get(name)
        return node is not None and node.domain not in _ONNX

    def producer(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is one of ONNX's own operators of these types."""
        node = self._producers.get(name)
        return node if node is not None and self.is_of_type(node, *op_types) else None

    def inner(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """As `producer`, if the value has one user and nobody else can see it: a rule may take the
        node away with that user."""
        is_inner = len(self._users[name]) == 1 and name not in self._visible
        return self.producer(name, *op_types) if is_inner else None

    def users(self, name: str) -> Sequence[onnx.NodeProto]:
        """A node for each use by a node of the main graph."""
        return self._users[name]

    def is_visible(self, name: str) -> bool:
        """Whether it is an output of the model, or a subgraph uses it."""
        return name in self._visible

    def is_float(self, *names: str) -> bool:
        """Whether all are known to be float32."""
        return all(name in self._types and self._types[name].elem_type == FLOAT for name in names)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """None if not even the rank is known."""
        known = self._types.get(name)
        return None if known is None else known.shape

    def is_constant(self, name: str) -> bool:
        """Whether it is the same in every run, as ONNX Runtime sees, too; reads no value."""
        if name in self._initializers:
            return True
        node = self.producer(name, *FOLDED)
        return node is not None and all(self.is_constant(it) for it in node.input)

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value, if it is the same in every run and cheap to compute; else None."""
        if name in self._constants:
            return self._constants[name]
        value = self._read_constant(name)
        if value is None or value.nbytes <= _LARGE:
            self._constants[name] = value
        return value

    def float_constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """As `constant`, for float32 only."""
        value = self.constant(name)
        return value if value is not None and value.dtype == np.float32 else None

    def float_constants(self, names: Iterable[str]) -> list[np.ndarray[Any, Any]] | None:
        """None unless all are."""
        found = [self.float_constant(name) for name in names]
        return None if any(it is None for it in found) else [it for it in found if it is not None]

    def scalar(self, name: str) -> float | None:
        """The value of a float32 constant of one element and rank 0 or 1."""
        value = self.float_constant(name)
        if value is None or value.size != 1 or value.ndim > 1:
            return None
        return float(value.reshape(()))

    def is_scalar(self, name: str, expected: float) -> bool:
        """Whether it is the scalar that is nearest to `expected`."""
        return self.scalar(name) == float(np.float32(expected))

    def with_scalar(self, node: onnx.NodeProto, expected: float) -> str | None:
        """The other input of a commutative operator of which one input is this scalar."""
        for index in (0, 1):
            if self.is_scalar(node.input[1 - index], expected):
                return str(node.input[index])
        return None

    def _read_constant(self, name: str) -> np.ndarray[Any, Any] | None:
        try:
            return self._compute_constant(name)
        except (OSError, ValueError, IndexError, onnx.checker.ValidationError):
            return None  # the model is damaged, or its data is missing: ONNX Runtime tells

    def _compute_constant(self, name: str) -> np.ndarray[Any, Any] | None:
        tensor = self._initializers.get(name)
        if tensor is not None:
            return self._read_initializer(tensor) if is_readable(tensor) else None
        node = self._producers.get(name)
        if node is None or node.domain not in _ONNX:
            return None
        if node.op_type not in FOLDED:
            return None
        inputs = [self.constant(it) for it in node.input]
        if any(it is None for it in inputs):
            return None
        folded: np.ndarray[Any, Any] | None = FOLDED[node.op_type](node, inputs)
        return folded

    # --- Changing -----------------------------------------------------------------------------

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Puts `new`, in topological order, in place of the last node of `old`.

        The last new node makes the value that the last old one made. The other values of `old` have
        no users but `old`.
        """
        assert new[-1].output[0] == old[-1].output[0]
        new[-1].name = new[-1].name or old[-1].name  # for who looks for it in a profile
        place = self._places[id(old[-1])]
        index = next(index for index, it in enumerate(place) if it is old[-1])
        place[index:index] = new
        for node in old:
            self._take_away(node)
        for node in new:
            self._enter(node, place)

    def may_copy(self, name: str) -> bool:
        """Whether a rule may have this float32 constant copied; counts it, if so."""
        shape = self.shape(name)
        if shape is None or None in shape:
            return False
        num_bytes = 4 * math.prod(shape)  # type: ignore[arg-type]
        if self._copied_bytes + num_bytes > MOST_COPIED:
            return False
        self._copied_bytes += num_bytes
        return True

    def add_constant(self, value: np.ndarray[Any, Any]) -> str:
        """A new initializer; its name. Ask `may_copy` before one of the size of weights."""
        name = self.new_name()
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(value, name))
        self._initializers[name] = tensor
        self._types[name] = ValueType(tensor.data_type, value.shape)
        return name

    def new_name(self) -> str:
        """A name that nothing in the model has."""
        while (name := f"deepsched_{self._num_new}") in self._taken:
            self._num_new += 1
        self._taken.add(name)
        return name

    def commit(self) -> None:
        """Writes the changed list of nodes into the model."""
        nodes = self.model.graph.node
        wanted = list(self._nodes())
        kept = {id(it) for it in wanted}
        for index in reversed(range(len(nodes))):
            if id(nodes[index]) not in kept:
                del nodes[index]
        for index, node in enumerate(wanted):
            if index == len(nodes) or nodes[index] is not node:
                nodes.insert(index, node)

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        return itertools.chain.from_iterable(self._order)

    def _enter(self, node: onnx.NodeProto, place: list[onnx.NodeProto]) -> None:
        self._places[id(node)] = place
        self._producers.update(dict.fromkeys(filter(None, node.output), node))
        for name in filter(None, node.input):
            self._users[name].append(node)

    def _take_away(self, node: onnx.NodeProto) -> None:
        place = self._places.pop(id(node))
        place[:] = (it for it in place if it is not node)
        for name in filter(None, node.output):
            del self._producers[name]
        for name in filter(None, node.input):
            self._users[name] = [it for it in self._users[name] if it is not node]


_ONNX = ("", "ai.onnx")

# A node with fewer is an error, which is ONNX Runtime's to tell.
_FEWEST_INPUTS = {
    **dict.fromkeys(("Add", "Conv", "Div", "MatMul", "Mul", "Sub"), 2),
    "BatchNormalization": 5,
    "Constant": 0,
}


def _names_in_subgraphs(node: onnx.NodeProto) -> Iterator[str]:
    """Every name that the node's subgraphs use, whether it is theirs or an outer one."""
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from inner.input
            yield from _names_in_subgraphs(inner)
        yield from (value.name for value in graph.output)


def _outputs_in_subgraphs(node: onnx.NodeProto) -> Iterator[str]:
    """Every name that the node's subgraphs give to a value."""
    for graph in _subgraphs(node):
        yield from (value.name for value in (*graph.input, *graph.initializer))
        for inner in graph.node:
            yield from inner.output
            yield from _outputs_in_subgraphs(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for it in node.attribute:
        if it.HasField("g"):
            yield it.g
        yield from it.graphs


# --- Types ----------------------------------------------------------------------------------------


def copy_without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of which nothing but types and shapes can be inferred: without the values of all but
    the smallest constants, and without what the model states about inner values."""
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    _copy_without_weights(model.graph, copy.graph)
    return copy


def infer_types(model: onnx.ModelProto) -> dict[str, ValueType]:
    """The types of the main graph's values, as far as onnx can infer them."""
    graph = (infer_shapes(model) or model).graph
    types = {it.name: ValueType(it.data_type, tuple(it.dims)) for it in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        if info.type.HasField("tensor_type") and tensor.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
                for dim in tensor.shape.dim  # Paddle writes -1 for any
            )
            types[info.name] = ValueType(tensor.elem_type, shape)
    return types


def _copy_without_weights(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    target.name = source.name
    target.input.extend(source.input)
    target.output.extend(source.output)
    for tensor in source.initializer:
        _copy_tensor(tensor, target.initializer.add())
    for node in source.node:
        copy = target.node.add(op_type=node.op_type, domain=node.domain, name=node.name)
        copy.input.extend(node.input)
        copy.output.extend(node.output)
        for it in node.attribute:
            if it.HasField("t"):
                _copy_tensor(it.t, copy.attribute.add(name=it.name, type=it.type).t)
            elif it.HasField("g"):
                _copy_without_weights(it.g, copy.attribute.add(name=it.name, type=it.type).g)
            else:
                copy.attribute.add().CopyFrom(it)


def _copy_tensor(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    if math.prod(source.dims) <= _MOST_ELEMENTS_FOR_SHAPES:
        target.CopyFrom(source)
        return
    target.name = source.name
    target.data_type = source.data_type
    target.dims.extend(source.dims)
    # To onnx, data that lies elsewhere: it takes the type and the shape, and does not look.
    target.data_location = onnx.TensorProto.EXTERNAL
