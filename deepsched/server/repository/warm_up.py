"""Values of the warm-up requests that a configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from deepsched.errors import OptionError
from deepsched.server.repository.model_options import WarmUp, WarmUpInput
from deepsched.server.tensors import Array, TensorSpec, from_raw


def values_of(warm_up: WarmUp, inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """An array for each input.

    Args:
        inputs: the model's.

    Raises:
        OptionError: the model has no such input.
        InputError: a file holds less or more than the shape needs.
    """
    unknown = [it.name for it in warm_up.inputs if it.name not in inputs]
    if unknown:
        raise OptionError(
            f"model_warmup {warm_up.name!r} has inputs {unknown}, the model has {list(inputs)}"
        )
    return {it.name: _value(it, inputs[it.name]) for it in warm_up.inputs}


def _value(given: WarmUpInput, spec: TensorSpec) -> Array:
    shape = given.shape
    if given.source not in ("zero", "random"):
        with open(given.source, "rb") as file:
            return from_raw(spec, shape, math.prod(shape), memoryview(file.read()))
    if spec.dtype == object:
        return np.full(shape, "", object)
    if given.source == "zero":
        return np.zeros(shape, spec.dtype)
    rng = np.random.default_rng(0)
    if spec.dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
