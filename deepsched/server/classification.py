"""The classification extension: instead of an output, its largest elements with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsched.server.errors import RequestError
from deepsched.server.tensors import MOST_ELEMENTS, Array, TensorSpec

# Strings of an answer: they take about 2 us each.
_MOST_NAMED = 100_000


def classify(
    spec: TensorSpec, output: Array, count: Any, is_batch: bool, labels: Sequence[str] = ()
) -> Array:
    """The `count` largest elements, each as a string "value:index" or "value:index:label".

    Args:
        spec: of the output.
        output: numbers.
        count: as the request gives it.
        is_batch: whether each item of the first dimension is classified for itself.
        labels: by index.

    Returns:
        Strings, of shape [batch, count] or [count]; fewer where there are fewer elements.

    Raises:
        RequestError: `count` is no positive integer or too much, or the output is not of numbers.

    Example:
        >>> scores = TensorSpec("scores", "FP32", np.dtype(np.float32), (-1, 3), 0)
        >>> classify(scores, np.array([[0.25, 1, 0.5]], np.float32), 2, True, ["cat", "dog"])
        array([['1.000000:1:dog', '0.500000:2']], dtype=object)
    """
    if type(count) is not int or count < 1:
        raise RequestError(
            f"output {spec.name!r}: expected 'classification' to be 1 or more, got {count!r:.40}"
        )
    if output.dtype == object or output.dtype.kind == "c":
        raise RequestError(f"output {spec.name!r} has no largest elements: {spec.datatype}")
    num_rows = output.shape[0] if is_batch and output.ndim else 1
    # As -1, the other size would be unknown where there are no rows.
    width = math.prod(output.shape[1:]) if is_batch and output.ndim else output.size
    rows = output.reshape(num_rows, width)
    count = min(count, width)
    if output.size > MOST_ELEMENTS or num_rows * count > _MOST_NAMED:
        raise RequestError(
            f"output {spec.name!r}: {num_rows * count} of its {output.size} elements are asked for "
            f"by 'classification', at most {_MOST_NAMED} of {MOST_ELEMENTS} are given; ask for all "
            "as raw bytes"
        )
    largest = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    named = np.empty(largest.shape, object)
    for row, indexes in enumerate(largest):
        for place, index in enumerate(indexes):
            value = rows[row, index]
            text = f"{float(value):f}" if output.dtype.kind not in "iub" else str(int(value))
            label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
            named[row, place] = f"{text}:{index}{label}"
    return named if is_batch else named.reshape(-1)
