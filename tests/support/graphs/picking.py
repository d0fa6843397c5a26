"""Which value a step works on: one that is there, or a new input of the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from tests.support.graphs.draft import Draft, Value, elem_type, random_array

_DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bool": np.bool_,
    "string": np.object_,
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""Those that onnxruntime's Python takes, by their names in its kernels."""

FLOAT32 = (np.dtype(np.float32),)
FLOATS = tuple(np.dtype(it) for it in (np.float32, np.float64, np.float16))
INT64 = (np.dtype(np.int64),)

_SHAPES: tuple[list[int | str], ...] = (
    ["batch", 3],
    ["batch", 4, 6],
    ["batch", 3, 8, 8],
    ["batch", "length", 4],
    ["batch"],
    ["length", 5],
    [2, 3, 4],
    [16],
    [1],
    [],
    [2, 0, 3],
)


@cache
def _kernels() -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for kernel in ort.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            found.setdefault((kernel.domain, kernel.op_name), []).append(kernel)
    return found


def operators_with_kernels() -> set[tuple[str, str]]:
    return set(_kernels())


@cache
def dtypes_of(op_type: str, opset: int, domain: str = "") -> tuple[np.dtype, ...]:
    """What its kernels take as the first input, the commoner ones first.

    FLOATS where there is no kernel: onnx may spell the operator out as a function.
    """
    found: set[str] = set()
    for kernel in _kernels().get((domain, op_type), []):
        first, last = kernel.version_range
        if first <= opset <= last and kernel.type_constraints:
            constraints = kernel.type_constraints
            types = (
                constraints.get("T") or constraints.get("T1") or next(iter(constraints.values()))
            )
            found |= {it.removeprefix("tensor(").removesuffix(")") for it in types}
    return tuple(np.dtype(dtype) for name, dtype in _DTYPES.items() if name in found) or FLOATS


def _fits(value: Value, ranks: tuple[int, int]) -> bool:
    return value.is_tensor and ranks[0] <= value.rank <= ranks[1]


def tensor(
    draw: st.DrawFn,
    draft: Draft,
    dtypes: tuple[np.dtype, ...] = FLOATS,
    ranks: tuple[int, int] = (0, 9),
    where: Callable[[Value], bool] = lambda value: True,
) -> Value:
    """One that is there, as it is or cast to one of `dtypes`; or a new input."""
    fitting = [it for it in draft.values if _fits(it, ranks) and where(it)]
    exact = [it for it in fitting if it.dtype in dtypes]
    if exact and draw(st.integers(0, 4)):
        return exact[-1 - draw(st.integers(0, len(exact) - 1))]
    dtype = draw(st.sampled_from(dtypes))
    castable = [it for it in fitting if "O" not in (it.dtype.kind, dtype.kind)]
    if castable and draw(st.booleans()):
        value = castable[-1 - draw(st.integers(0, len(castable) - 1))]
        return draft.add("Cast", [value], to=elem_type(dtype))[0]
    shapes = [it for it in _SHAPES if ranks[0] <= len(it) <= ranks[1]]
    shape = draw(st.sampled_from(shapes)) if shapes else [2] * ranks[0]
    return draft.new_input(dtype, shape)


def beside(draw: st.DrawFn, draft: Draft, value: Value, is_safe: bool = False) -> Value:
    """Another of the same type that broadcasts with it: computed, or a constant.

    Args:
        is_safe: whether it must be a constant of small positive numbers: it shifts bits.
    """
    same = [
        it
        for it in draft.values
        if it.is_tensor and it.dtype == value.dtype and it.shape == value.shape
    ]
    if same and not is_safe and draw(st.integers(0, 2)):
        return draw(st.sampled_from(same))
    sizes = [size if isinstance(size, int) else 1 for size in value.shape or []]
    kept = sizes[draw(st.integers(0, len(sizes))) :]
    for axis in range(len(kept)):
        if draw(st.integers(0, 3)) == 0:
            kept[axis] = 1
    if draw(st.integers(0, 7)) == 0:
        kept = [2, *[1] * len(sizes), *kept][-len(sizes) - 1 :]
    if is_safe:
        return draft.constant(draft.rng.integers(1, 6, kept).astype(value.dtype))
    return draft.constant(new_array(draft, value.dtype, kept))


def new_array(draft: Draft, dtype: np.dtype, sizes: Any) -> np.ndarray:
    return random_array(draft.rng, dtype, tuple(sizes))


def axis_of(draw: st.DrawFn, value: Value) -> int:
    """Of a tensor of rank 1 or more; counted from either end."""
    return draw(st.integers(-value.rank, value.rank - 1))


def some_axes(draw: st.DrawFn, value: Value) -> list[int]:
    return draw(
        st.lists(st.integers(0, value.rank - 1), min_size=1, max_size=value.rank, unique=True)
    )
