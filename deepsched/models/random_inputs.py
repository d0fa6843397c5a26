"""Made-up inputs that fit a model, as far as it says what fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepsched.errors import InferenceError, OptionError

logger = logging.getLogger("deepsched")


def random_inputs(infos: Sequence[Any], batch_size: int | None) -> list[Any]:
    """A value for each input; the same at each call. `infos`: see random_value.

    Raises:
        OptionError: an input is a map, or larger than there is memory.
    """
    rng = np.random.default_rng(0)
    return [random_value(rng, info, batch_size or 1) for info in infos]


def tried_inputs(
    infos: Sequence[Any],
    batch_size: int | None,
    run: Callable[[list[Any]], Any],
    warns: bool = False,
) -> list[Any]:
    """Random inputs that `run` has answered once. `warns`: whether to log the sizes made up.

    Raises:
        InferenceError: it fails; says so if made-up sizes may be the reason.
    """
    inputs = random_inputs(infos, batch_size)
    made_up = _open_sizes(infos, inputs)
    hint = "input_shapes (on the command line --input-shapes) gives others"
    try:
        run(inputs)
    except InferenceError as error:
        if not made_up:
            raise
        raise InferenceError(
            f"{error}. The inputs were made up, with size 1 where the model leaves a size open "
            f"({made_up}); {hint}"
        ) from error
    if made_up and warns:
        logger.warning("sizes that the model leaves open are 1 (%s); %s", made_up, hint)
    return inputs


def random_value(rng: np.random.Generator, info: Any, batch_size: int) -> Any:
    """A value for an input. `info`: its name, kind, shape, dtype and content, as in ValueInfo;
    sizes that may be any are batch_size, then 1.

    Raises:
        OptionError: it is a map, or larger than there is memory.
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
    try:
        if info.dtype == object:
            return np.full(shape, "a", dtype=object)
        if info.dtype.kind in "iub":
            return rng.integers(0, 2, shape).astype(info.dtype)  # valid as an index almost anywhere
        return rng.standard_normal(shape).astype(info.dtype)
    except (MemoryError, ValueError) as error:  # more bytes than there are, or than numpy counts
        raise OptionError(
            f"input {info.name!r} has the shape {shape}; random ones cannot be made up: {error}"
        ) from error


def _open_sizes(infos: Sequence[Any], inputs: Sequence[Any]) -> str:
    """Shapes of made-up inputs that the model leaves open, beside the batch; empty if none."""
    return ", ".join(
        f"{info.name}: {'x'.join(map(str, value.shape))}"
        for info, value in zip(infos, inputs, strict=True)
        if info.kind == "tensor" and not all(isinstance(size, int) for size in info.shape[1:])
    )
