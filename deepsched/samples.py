"""Made-up inputs that fit a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepsched.errors import OptionError


def random_value(rng: np.random.Generator, info: Any, batch_size: int) -> Any:
    """A value for an input. `info`: its name, kind, shape, dtype and content, as in ValueInfo;
    sizes that may be any are batch_size, then 1.

    Raises:
        OptionError: it is a map.
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
