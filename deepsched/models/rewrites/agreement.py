"""Whether a rewritten model's outputs are the plain one's: every bit, or float32's accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# 128 roundings of the largest value: so many add up over the layers of a deep network.
_OF_LARGEST = 2.0**-16

# As many times as far as outputs move anyway if the inputs move by one rounding.
_OF_NUDGE = 8.0


class Moved(NamedTuple):
    """How far outputs moved."""

    by: float
    """In units of an output's largest value; infinite if a shape, a type, a whole number or a value
    that is not finite changed."""
    is_allowed: bool
    """Whether that is within float32's accuracy: 2^-16 of the largest value, plus 8 times as far
    as it moves if each input is moved to a neighbouring float."""
    has_same_bits: bool


_SAME = Moved(0.0, True, True)
_DIFFERS = Moved(np.inf, False, False)


def all_of(moved: Iterable[Moved]) -> Moved:
    """The furthest, which is allowed if each is."""
    found = list(moved)
    return Moved(
        max((it.by for it in found), default=0.0),
        all(it.is_allowed for it in found),
        all(it.has_same_bits for it in found),
    )


def compare(plain: Any, other: Any, nudged: Any = None) -> Moved:
    """How far `other` is from `plain`.

    Args:
        plain: outputs of the plain model: arrays, and sequences and maps of them.
        other: outputs of the rewritten model.
        nudged: as `plain`, for inputs that were moved by one rounding; None for what is not known.

    >>> compare([np.float32([1, 2])], [np.float32([1, 2.000001])]).is_allowed
    True
    >>> compare([np.float32([1, 2])], [np.float32([1, 2.001])]).is_allowed
    False
    """
    if isinstance(plain, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(plain) != len(other):
            return _DIFFERS
        has_nudged = isinstance(nudged, (list, tuple)) and len(nudged) == len(plain)
        aside = nudged if has_nudged else [None] * len(plain)
        return all_of(compare(*it) for it in zip(plain, other, aside, strict=True))
    if isinstance(plain, np.ndarray) and isinstance(other, np.ndarray):
        return _compare_arrays(plain, other, nudged)
    return _SAME if type(plain) is type(other) and plain == other else _DIFFERS


def _compare_arrays(plain: np.ndarray[Any, Any], other: np.ndarray[Any, Any], nudged: Any) -> Moved:
    if (plain.dtype, plain.shape) != (other.dtype, other.shape):
        return _DIFFERS
    if plain.dtype == object:
        return _SAME if plain.tolist() == other.tolist() else _DIFFERS
    if plain.tobytes() == other.tobytes():
        return _SAME
    if plain.dtype.kind != "f":
        return _DIFFERS
    is_finite = np.isfinite(plain)
    if not np.array_equal(plain[~is_finite], other[~is_finite], equal_nan=True):
        return _DIFFERS
    values, others = (it[is_finite].astype(np.float64) for it in (plain, other))
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    by = float(np.abs(values - others).max(initial=0.0)) / largest
    limit = max(_OF_LARGEST, float(np.finfo(plain.dtype).eps))
    if isinstance(nudged, np.ndarray) and nudged.shape == plain.shape:
        noise = np.abs(nudged[is_finite].astype(np.float64) - values)
        limit += _OF_NUDGE * float(noise.max(initial=0.0, where=np.isfinite(noise))) / largest
    return Moved(by, by <= limit, False)
