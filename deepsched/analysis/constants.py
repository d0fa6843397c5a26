"""The constants of a model's operators, from its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from deepsched.analysis.reading import Key

Shape = tuple[int, ...]


class NodeConstants(NamedTuple):
    """Of one node."""

    positions: tuple[int, ...]
    """Those of its inputs that are there, constants or not."""
    shapes: dict[int, Shape]
    """By position."""
    num_bytes: int


def read_constants(path: Path) -> dict[Key, NodeConstants]:
    """Of each node of the main graph, under the name that ONNX Runtime's timeline gives it.

    Timelines leave out the constants that a kernel has packed for itself.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[Key, NodeConstants] = {}
    for index, node in enumerate(graph.node):
        mine = {
            position: constants[name]
            for position, name in enumerate(node.input)
            if name in constants
        }
        name = node.name or f"{node.op_type}_{index}"
        found[Key((name,), index, node.op_type)] = NodeConstants(
            tuple(position for position, name in enumerate(node.input) if name),
            {position: tuple(tensor.dims) for position, tensor in mine.items()},
            sum(_num_bytes(tensor) for tensor in mine.values()),
        )
    return found


def shapes_by_position(
    listed: Sequence[Shape], constants: NodeConstants | None
) -> dict[int, Shape]:
    """The shapes of a node's inputs.

    Args:
        listed: as the timeline has them: in order, some of the constants left out.
        constants: those of the node; None where they are not known.

    >>> shapes_by_position([(1, 8), (4,)], NodeConstants((0, 1, 2), {1: (8, 4), 2: (4,)}, 144))
    {0: (1, 8), 1: (8, 4), 2: (4,)}
    """
    if constants is None:
        return dict(enumerate(listed))
    shapes: dict[int, Shape] = {}
    rest = list(listed)
    num_left_out = len(constants.positions) - len(listed)
    for position in constants.positions:
        constant = constants.shapes.get(position)
        if constant is not None and num_left_out > 0 and rest[:1] != [constant]:
            shapes[position] = constant
            num_left_out -= 1
        elif rest:
            shapes[position] = rest.pop(0)
    return shapes


def _num_bytes(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return int(tensor.ByteSize())  # a small one: with some bytes of name and shape
