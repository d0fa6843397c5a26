"""Models whose right answers are known, and what makes their kernels fail."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support import models


@dataclass(frozen=True, eq=False)
class Call:
    """Inputs, and the output that they must give; None: a kernel fails."""

    inputs: list[Any]
    output: Any


@dataclass(frozen=True)
class Kind:
    """A model, and calls of it."""

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)

    def call(self, rng: random.Random, may_fail: bool = True) -> Call:
        """Inputs of its own, so that no other call has this answer."""
        return _CALLS[self.name](self, rng, may_fail and rng.random() < 0.1)

    def is_right(self, call: Call, outputs: list[Any]) -> bool:
        """Whether these are the outputs of that call."""
        (output,) = outputs
        return output.shape == call.output.shape and np.allclose(
            output, call.output, rtol=1e-3, atol=1e-4
        )


def save_kinds(folder: str) -> list[Kind]:
    """One of each, in files."""
    made = {"gather": models.gather(), "pick": pick(0), "spin": models.spin()}
    for name, model in made.items():
        onnx.save(model, f"{folder}/{name}.onnx")
    together = {"pick": {"batching": 8}}  # its items can run together
    return [Kind(name, f"{folder}/{name}.onnx", together.get(name, {})) for name in made]


_WIDTH = 32


def weights(seed: int) -> Any:
    """Of `pick`."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((_WIDTH, _WIDTH)).astype(np.float32)


def pick(seed: int) -> onnx.ModelProto:
    """y = the number at `index` in each row of x @ w; an index out of range fails in the kernel."""
    return models.make(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("GatherElements", ["h", "index"], ["y"], axis=1),
        ],
        [
            models.tensor("x", ["n", _WIDTH]),
            models.tensor("index", ["n", 1], TensorProto.INT64),
        ],
        [models.tensor("y", ["n", 1])],
        [onnx.numpy_helper.from_array(weights(seed), "w")],
    )


def call_pick(rng: random.Random, fails: bool = False, seed: int = 0, rows: int = 0) -> Call:
    """A call of `pick(seed)`."""
    rows = rows or rng.randrange(1, 5)
    numbers = np.random.default_rng(rng.randrange(2**32))
    x = numbers.standard_normal((rows, _WIDTH)).astype(np.float32)
    index = numbers.integers(0, _WIDTH, (rows, 1))
    output = np.take_along_axis(x @ weights(seed), index, axis=1)
    if fails:
        index[rng.randrange(rows)] = _WIDTH
    return Call([x, index], None if fails else output)


def _call_gather(kind: Kind, rng: random.Random, fails: bool) -> Call:
    size = rng.randrange(1, 300)
    x = np.arange(size, dtype=np.float32) + rng.randrange(10_000)
    index = size if fails else rng.randrange(size)
    return Call([x, np.array([index], np.int64)], None if fails else x[index : index + 1])


def _call_spin(kind: Kind, rng: random.Random, fails: bool) -> Call:
    x = np.full((64, 64), rng.randrange(10_000), np.float32)
    return Call([np.array(rng.choice([1, 10, 100, 1000]), np.int64), x], x)


_CALLS = {
    "gather": _call_gather,
    "pick": lambda kind, rng, fails: call_pick(rng, fails),
    "spin": _call_spin,
}
