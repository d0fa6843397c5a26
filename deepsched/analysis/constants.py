"""Shapes and sizes of each operator's constants, from the model's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from deepsched.analysis.reading import OperatorKey, Shape


class NodeConstants(NamedTuple):
    """The constants among the inputs of one node."""

    positions: tuple[int, ...]
    """Positions of the inputs that are present, constants or not."""
    shapes: dict[int, Shape]
    """Shapes of the constants, by position."""
    num_bytes: int


def read_constants(path: Path) -> dict[OperatorKey, NodeConstants]:
    """The constants of each node of the main graph, by the key that it has in profiles.

    Needed since profiles omit the constants that a kernel has prepacked.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[OperatorKey, NodeConstants] = {}
    for index, node in enumerate(graph.node):
        own = {
            position: constants[name]
            for position, name in enumerate(node.input)
            if name in constants
        }
        name = node.name or f"{node.op_type}_{index}"
        found[OperatorKey((name,), index, node.op_type)] = NodeConstants(
            tuple(position for position, name in enumerate(node.input) if name),
            {position: tuple(tensor.dims) for position, tensor in own.items()},
            sum(_num_bytes(tensor) for tensor in own.values()),
        )
    return found


def shapes_by_position(
    listed: Sequence[Shape], constants: NodeConstants | None
) -> dict[int, Shape]:
    """The shapes of a node's inputs, by position.

    Args:
        listed: the input shapes in a profile: in order, some of the constants omitted.
        constants: the node's constants; None if unknown.

    >>> shapes_by_position([(1, 8), (4,)], NodeConstants((0, 1, 2), {1: (8, 4), 2: (4,)}, 144))
    {0: (1, 8), 1: (8, 4), 2: (4,)}
    """
    if constants is None:
        return dict(enumerate(listed))
    shapes: dict[int, Shape] = {}
    rest = list(listed)
    num_omitted = len(constants.positions) - len(listed)
    for position in constants.positions:
        constant = constants.shapes.get(position)
        if constant is not None and num_omitted > 0 and rest[:1] != [constant]:
            shapes[position] = constant
            num_omitted -= 1
        elif rest:
            shapes[position] = rest.pop(0)
    return shapes


def _num_bytes(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return int(tensor.ByteSize())  # embedded, so small: some bytes of name and shape do not matter
