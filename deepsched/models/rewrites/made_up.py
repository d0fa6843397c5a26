"""Inputs on which a rewritten model is tried: of several magnitudes, batch sizes and signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from deepsched.errors import OptionError
from deepsched.models.random_inputs import random_value
from deepsched.models.rewrites.graph import infer_types

# For what a model leaves open beside the batch: widths of pictures, lengths of texts. Two are tried
# in vain by models whose layers need more, or the one height that a text line has.
_SIZES = (64, 224, 48, 32)

_MOST_BYTES = 2**28
"""Of the inputs of one request: making them up takes seconds by GB."""

_WINDOWS = frozenset(("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"))


class FixedInfo(NamedTuple):
    """A ValueInfo whose sizes are all fixed."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    content: Any


def fix_sizes(infos: Sequence[Any], batch: int, size: int) -> list[FixedInfo]:
    """The inputs, with `batch` for first dimensions that are open, and `size` for others.

    Args:
        infos: ValueInfos.

    Raises:
        OptionError: they would be too large to be made up several times.
    """
    fixed = [_fix(info, batch, size) for info in infos]
    num_bytes = sum(math.prod(it.shape) * it.dtype.itemsize for it in fixed)
    if num_bytes > _MOST_BYTES:
        raise OptionError(f"one request's inputs take {num_bytes / 1e6:.0f} MB")
    return fixed


def sizes_to_try(infos: Sequence[Any], skeleton: onnx.ModelProto) -> Iterator[int]:
    """Sizes for fix_sizes that the model's windows fit into.

    Args:
        skeleton: the model; see copy_without_weights.
    """
    has_open = any(not isinstance(size, int) for info in infos for size in _sizes(info)[1:])
    for size in _SIZES if has_open else _SIZES[:1]:
        if not has_open or _windows_fit(skeleton, [_fix(it, 1, size) for it in infos]):
            yield size


def has_open_batch(infos: Sequence[Any]) -> bool:
    return any(not isinstance(size, int) for info in infos for size in _sizes(info)[:1])


def _sizes(info: Any) -> Sequence[Any]:
    return info.shape if info.kind == "tensor" else ()


def _fix(info: Any, batch: int, size: int) -> FixedInfo:
    shape = [
        it if isinstance(it, int) else batch if position == 0 else size
        for position, it in enumerate(_sizes(info))
    ]
    return FixedInfo(info.name, info.kind, tuple(shape), info.dtype, info.content)


def _windows_fit(skeleton: onnx.ModelProto, infos: Sequence[FixedInfo]) -> bool:
    """Whether every convolution and pooling is known to have an output: ONNX Runtime (1.32) divides
    by zero where one has none, which ends the process."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    shapes = {info.name: info.shape for info in infos}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    types = infer_types(model)
    names = [next(iter(it.output), "") for it in model.graph.node if it.op_type in _WINDOWS]
    return all(
        name in types and all(size is not None and size > 0 for size in types[name].shape)
        for name in names
    )


Variant = Callable[[np.random.Generator, Any], Any]


def _normal(rng: np.random.Generator, info: FixedInfo) -> Any:
    return random_value(rng, info, 1)


def _small(rng: np.random.Generator, info: FixedInfo) -> Any:
    return _scale(random_value(rng, info, 1), 0.01)


def _pixels(rng: np.random.Generator, info: FixedInfo) -> Any:
    value = random_value(rng, info, 1)
    return np.abs(_scale(value, 100)) if _is_float(value) else value


VARIANTS: tuple[Variant, ...] = (_normal, _small, _pixels)
"""Standard normal; a hundredth of it; a hundred times its absolute value."""


def nudged(rng: np.random.Generator, value: Any) -> Any:
    """The value with each float moved to a neighbour: what rounding it would do."""
    if isinstance(value, list):
        return [nudged(rng, it) for it in value]
    if not _is_float(value):
        return value
    towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
    return np.nextafter(value, towards)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _scale(value: Any, factor: float) -> Any:
    return (value * factor).astype(value.dtype) if _is_float(value) else value
