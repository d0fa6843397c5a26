"""Splitting a batch into requests, and concatenating their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepsched.errors import InputError


def split_batch(
    inputs: list[Any], num_split: int, batch_size: int | None, num_streams: int
) -> list[list[Any]]:
    """Inputs of each part, in order; views, not copies. All parts have those after the first
    `num_split` whole.

    Raises:
        InputError: the first dimensions differ, or batch_size does not divide them.
    """
    arrays = [np.asarray(value) for value in inputs[:num_split]]
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise InputError("batched_run needs inputs that have a first dimension to split")
    sizes = {len(array) for array in arrays}
    if len(sizes) > 1:
        raise InputError(
            "batched_run needs the same first dimension in all inputs, got "
            f"{[len(array) for array in arrays]}"
        )
    (total,) = sizes
    if batch_size is None:
        num_parts = max(1, min(num_streams, total))
        ends = [total * (part + 1) // num_parts for part in range(num_parts)]
    elif total % batch_size or not total:
        raise InputError(
            f"a batch of {total} cannot be split into parts of {batch_size}, the batch size that "
            "the engine was compiled for; pad it to a multiple, or compile with batch_size=None"
        )
    else:
        ends = list(range(batch_size, total + 1, batch_size))
    starts = [0, *ends[:-1]]
    return [
        [*(array[start:end] for array in arrays), *inputs[num_split:]]
        for start, end in zip(starts, ends, strict=True)
    ]


def join_batch(parts: list[list[Any]], output_names: list[str]) -> list[Any]:
    """Outputs of the whole batch.

    Raises:
        InputError: an output has no first dimension, or parts of it differ in others.
    """
    if len(parts) == 1:
        return parts[0]
    joined = []
    for name, *pieces in zip(output_names, *parts, strict=True):
        if not all(isinstance(piece, np.ndarray) and piece.ndim for piece in pieces):
            raise InputError(
                f"output {name!r} has no first dimension to join the parts along; use run or map"
            )
        sizes = sorted({piece.shape[1:] for piece in pieces})
        if len(sizes) > 1:
            raise InputError(
                f"output {name!r} has parts of different sizes behind the first dimension, "
                f"{', '.join(map(str, sizes))}, which cannot be joined; use run or map"
            )
        joined.append(np.concatenate(pieces))
    return joined
