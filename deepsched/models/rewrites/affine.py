"""Products and sums with constants of each channel, folded into a convolution or one normalization.

    BatchNormalization, Mul, Add, ...  of an image  ->  the convolution before or after them, else
                                                        one BatchNormalization

ONNX Runtime folds a BatchNormalization, and constants with a value for each channel, into the
convolution right before them. It does nothing about single numbers (PP-OCR has a Mul and an Add
around each activation), about several in a row after anything else (Caffe2's BatchNormalization,
Mul, Add), or about a convolution after them. Left over, they force its blocked layout (NCHWc) to be
undone and done again. A BatchNormalization it folds, or runs in the blocked layout. The factor at
the end of a Gelu stays: ONNX Runtime would not know the rest (PP-OCRv6: 1.05 times the time). Not
exact: the factors are multiplied with each other first, in double.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, helper

from deepsched.models.rewrites.graph import Graph
from deepsched.models.rewrites.nodes import attribute
from deepsched.models.rewrites.rule import Rule

_STEPS = ("Add", "BatchNormalization", "Div", "Mul", "Sub")

Array = np.ndarray[Any, Any]


class _Step(NamedTuple):
    """y = x * scale + shift, for each channel."""

    x: str
    scale: Array
    shift: Array
    is_of_channels: bool
    """Whether ONNX Runtime folds it into a convolution before it."""


class _Chain(NamedTuple):
    """Steps of which each is the only user of the one before."""

    nodes: list[NodeProto]
    x: str
    y: str
    scale: Array
    shift: Array
    is_of_channels: bool


def _rewrite(graph: Graph) -> int:
    if graph.is_quantized:
        return 0
    count = 0
    done: set[str] = set()
    for first in graph.of_type(*_STEPS):
        if first.output[0] in done:
            continue
        chain = _chain_from(graph, first)
        if chain is None:
            continue
        done.update(node.output[0] for node in chain.nodes)
        count += _fold(graph, chain)
    return count


def _chain_from(graph: Graph, first: NodeProto) -> _Chain | None:
    channels = _channels(graph, first.output[0])
    step = None if channels is None else _read_step(graph, first, channels)
    if channels is None or step is None:
        return None
    x, scale, shift, is_of_channels = step
    nodes = [first]
    while True:
        y = nodes[-1].output[0]
        users = graph.users(y)
        is_inner = len(users) == 1 and not graph.is_visible(y)
        if not is_inner or not graph.is_of_type(users[0], *_STEPS):
            break
        step = _read_step(graph, users[0], channels)
        if step is None:
            break
        nodes.append(users[0])
        scale, shift = scale * step.scale, shift * step.scale + step.shift
        is_of_channels &= step.is_of_channels
    return _Chain(nodes, x, y, scale, shift, is_of_channels)


def _fold(graph: Graph, chain: _Chain) -> bool:
    largest = np.abs([chain.scale, chain.shift]).max()
    if not largest < np.finfo(np.float32).max:  # NaN neither
        return False
    conv = graph.inner(chain.x, "Conv")
    if conv is not None and all(graph.is_constant(name) for name in filter(None, conv.input[1:])):
        # ONNX Runtime folds the normalization into it.
        if chain.is_of_channels or not graph.may_copy(conv.input[1]):
            return False
    elif _fold_into_next(graph, chain):
        return True
    elif len(chain.nodes) == 1 or not _is_among_convolutions(graph, chain):
        return False
    ones = np.ones_like(chain.scale)
    parameters = [chain.scale, chain.shift, 0 * ones, ones]
    names = [graph.add_constant(it.astype(np.float32)) for it in parameters]
    node = helper.make_node("BatchNormalization", [chain.x, *names], [chain.y], epsilon=0.0)
    graph.replace(chain.nodes, [node])
    return True


def _is_among_convolutions(graph: Graph, chain: _Chain) -> bool:
    is_normalized = any(node.op_type == "BatchNormalization" for node in chain.nodes)
    return is_normalized or any(it.op_type == "Conv" for it in graph.users(chain.y))


def _fold_into_next(graph: Graph, chain: _Chain) -> bool:
    """Into a convolution that does not pad: what it pads with would not be shifted."""
    users = graph.users(chain.y)
    if len(users) != 1 or graph.is_visible(chain.y):
        return False
    conv = users[0]
    if not graph.is_of_type(conv, "Conv") or conv.input[0] != chain.y:
        return False
    is_padded = any(attribute(conv, "pads", [])) or attribute(conv, "auto_pad", b"") not in (
        b"",
        b"NOTSET",
        b"VALID",
    )
    parameters = graph.float_constants(filter(None, conv.input[1:]))
    if parameters is None or attribute(conv, "group", 1) != 1:
        return False
    if is_padded and chain.shift.any():
        return False
    weights = parameters[0].astype(np.float64)
    if weights.ndim != 4 or weights.shape[1] != len(chain.scale):
        return False
    if not graph.may_copy(conv.input[1]):
        return False
    bias = parameters[1] if len(parameters) > 1 else np.zeros(len(weights))
    bias = bias + np.einsum("oihw,i->o", weights, chain.shift)
    weights = weights * chain.scale[:, None, None]
    if not max(np.abs(weights).max(), np.abs(bias).max()) < np.finfo(np.float32).max:
        return False
    names = [graph.add_constant(it.astype(np.float32)) for it in (weights, bias)]
    new = helper.make_node("Conv", [chain.x, *names], conv.output)
    new.attribute.extend(conv.attribute)
    graph.replace([*chain.nodes, conv], [new])
    return True


def _channels(graph: Graph, name: str) -> int | None:
    """Of a float32 image; None if it is none or has none, or if their number is not known."""
    shape = graph.shape(name)
    if shape is None or len(shape) != 4 or not graph.is_float(name):
        return None
    return shape[1] or None


def _read_step(graph: Graph, node: NodeProto, channels: int) -> _Step | None:
    if node.op_type == "BatchNormalization":
        step = _read_normalization(graph, node, channels)
    elif _ends_gelu(graph, node):
        step = None
    else:
        step = _read_arithmetic(graph, node, channels)
    return step if step is not None and _channels(graph, step.x) == channels else None


def _read_normalization(graph: Graph, node: NodeProto, channels: int) -> _Step | None:
    is_training = len(node.output) > 1 or attribute(node, "training_mode", 0)
    parameters = graph.float_constants(node.input[1:5])
    if is_training or parameters is None or not attribute(node, "spatial", 1):
        return None
    if any(it.shape != (channels,) for it in parameters):
        return None
    scale, shift, mean, variance = (it.astype(np.float64) for it in parameters)
    with np.errstate(all="ignore"):  # what comes of a negative variance is not finite
        scale = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return _Step(node.input[0], scale, shift - mean * scale, True)


def _ends_gelu(graph: Graph, node: NodeProto) -> bool:
    """Whether it is the last of x * (1 + erf(...)) * 0.5, or of the same with tanh."""
    x = graph.with_scalar(node, 0.5) if node.op_type == "Mul" else None
    product = None if x is None else graph.producer(x, "Mul")
    sums = [] if product is None else [graph.producer(name, "Add") for name in product.input]
    return any(
        graph.producer(name, "Erf", "Tanh") is not None
        for add in sums
        if add is not None
        for name in add.input
    )


def _read_arithmetic(graph: Graph, node: NodeProto, channels: int) -> _Step | None:
    for index in (1, 0):
        constant = graph.float_constant(node.input[index])
        if constant is None or constant.ndim > 4 or constant.size not in (1, channels):
            continue
        if constant.size != 1 and constant.shape[-3:] != (channels, 1, 1):
            continue
        value = np.broadcast_to(constant.reshape(-1).astype(np.float64), channels)
        one, none = np.ones(channels), np.zeros(channels)
        is_right = index == 1
        with np.errstate(all="ignore"):
            folded = {
                "Add": (one, value),
                "Mul": (value, none),
                "Sub": (one, -value) if is_right else (-one, value),
                "Div": (1 / value, none) if is_right else None,
            }[node.op_type]
        if folded is None:
            return None
        is_of_channels = constant.ndim >= 3 and node.op_type in ("Add", "Mul")
        scale, shift = folded
        return _Step(node.input[1 - index], scale, shift, is_of_channels)
    return None


AFFINE = Rule("affine", is_exact=False, rewrite=_rewrite)
