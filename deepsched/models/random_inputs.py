"""Random inputs that fit a model, as far as it states their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsched.errors import OptionError


def random_value(rng: np.random.Generator, info: Any, batch_size: int) -> Any:
    """A value for the input that `info` (a ValueInfo) describes. An open first dimension has
    batch_size, other open ones 1.

    Raises:
        OptionError: the input is a map.
    """
    if info.kind == "optional":
        return random_value(rng, info.content, batch_size)
    if info.kind == "sequence":
        return [random_value(rng, info.content, batch_size)]
    if info.kind == "map":
        raise OptionError(f"input {info.name!r} is a map; random ones cannot be made up")
    shape = [
        size if isinstance(size, int) else (batch_size if position == 0 else 1)
        for position, size in enumerate(info.shape)
    ]
    if info.dtype == object:
        return np.full(shape, "a", dtype=object)
    if info.dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(info.dtype)  # valid as an index almost anywhere
    return rng.standard_normal(shape).astype(info.dtype)


def open_sizes(infos: Sequence[Any], inputs: Sequence[Any]) -> str:
    """Names and shapes of the random inputs whose sizes the model leaves open, but for the batch;
    empty if there are none."""
    return ", ".join(
        f"{info.name}: {'x'.join(map(str, value.shape))}"
        for info, value in zip(infos, inputs, strict=True)
        if info.kind == "tensor" and not all(isinstance(size, int) for size in info.shape[1:])
    )
