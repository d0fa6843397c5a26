"""Operators that move elements, look some up, or make tensors from shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.support.graphs.draft import Draft, Value
from tests.support.graphs.picking import (
    INT64,
    axis_of,
    dtypes_of,
    new_array,
    tensor,
)


def _any(draw: st.DrawFn, draft: Draft, op_type: str, least_rank: int = 0) -> Value:
    return tensor(draw, draft, dtypes_of(op_type, draft.opset), (least_rank, 6))


def transpose(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Transpose", 1)
    permutation = draw(st.permutations(range(x.rank)))
    attributes = {"perm": permutation} if draw(st.booleans()) else {}
    draft.add("Transpose", [x], **attributes)


def reshape(draw: st.DrawFn, draft: Draft) -> None:
    """To a fixed shape with one open size, to two dimensions, or to a shape that is computed."""
    x = _any(draw, draft, "Reshape", 1)
    how = draw(st.sampled_from(("rest", "flatten", "like", "flat", "split")))
    if how == "flatten":
        draft.add("Flatten", [x], axis=draw(st.integers(0, x.rank)))
    elif how == "flat":
        draft.add("Reshape", [x, draft.ints(-1)])
    elif how == "like":
        flat = draft.add("Reshape", [x, draft.ints(-1)])[0]
        draft.add("Reshape", [flat, *draft.add("Shape", [x])])
    elif how == "rest":
        draft.add("Reshape", [x, draft.ints(0, -1)])
    else:
        draft.add("Reshape", [x, draft.ints(*[0] * (x.rank - 1), draw(st.integers(1, 3)), -1)])


def squeeze(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Unsqueeze")
    axes = draw(st.lists(st.integers(0, x.rank), min_size=1, max_size=2, unique=True))
    as_input = draft.opset >= 13
    axes = [it for it in axes if it < x.rank + len(axes)]
    one = [draft.ints(*axes)] if as_input else []
    attributes = {} if as_input else {"axes": axes}
    (wider,) = draft.add("Unsqueeze", [x, *one], **attributes)
    if draw(st.booleans()):
        draft.add("Squeeze", [wider, *one], **attributes)
    elif draw(st.booleans()):
        draft.add("Squeeze", [wider])


def concat(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Concat", 1)
    axis = draw(st.integers(0, x.rank - 1))
    fitting = [
        it
        for it in draft.values
        if it.is_tensor
        and it.dtype == x.dtype
        and it.rank == x.rank
        and all(
            one == other
            for at, (one, other) in enumerate(zip(it.shape or [], x.shape or [], strict=False))
            if at != axis
        )
    ]
    parts = draw(st.lists(st.sampled_from([x, *fitting]), min_size=1, max_size=4))
    draft.add("Concat", parts, axis=axis)


def split(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Split", 1)
    axis = draw(st.integers(0, x.rank - 1))
    size = x.sizes[axis]
    first = draw(st.integers(0, size))
    sizes = draw(st.sampled_from(([first, size - first], [size], [1] * size)))
    if draft.opset >= 13:
        draft.add("Split", [x, draft.ints(*sizes)], len(sizes), axis=axis)
    else:
        draft.add("Split", [x], len(sizes), axis=axis, split=sizes)


def slice_(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Slice", 1)
    axis = axis_of(draw, x)
    size = x.sizes[axis]
    start, end = draw(st.integers(-size - 1, size)), draw(st.integers(-size - 1, size + 2))
    if draft.opset < 10:
        draft.add("Slice", [x], starts=[start], ends=[end], axes=[axis % x.rank])
        return
    step = draw(st.sampled_from((1, 1, 2, -1, -2)))
    start, end = (end, start) if step < 0 else (start, end)
    draft.add("Slice", [x, *(draft.ints(it) for it in (start, end, axis, step))])


def _indices(draw: st.DrawFn, draft: Draft, size: int, sizes: Any) -> Value:
    dtype = draw(st.sampled_from((np.int64, np.int32)))
    return draft.constant(draft.rng.integers(-size, max(size, 1), sizes).astype(dtype))


def gather(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Gather", 1)
    axis = draw(st.integers(0, x.rank - 1))
    sizes = draw(st.sampled_from(((), (1,), (3,), (2, 2))))
    kind = draw(st.sampled_from(("Gather", "GatherElements", "GatherND")))
    if kind == "Gather":
        draft.add("Gather", [x, _indices(draw, draft, x.sizes[axis], sizes)], axis=axis)
    elif kind == "GatherElements":
        wanted = [min(2, size) for size in x.sizes]
        draft.add(kind, [x, _indices(draw, draft, x.sizes[axis], wanted)], axis=axis)
    else:
        least = min(x.sizes)
        depth = draw(st.integers(1, x.rank))
        draft.add(kind, [x, draft.constant(draft.rng.integers(0, max(least, 1), (3, depth)))])


def scatter(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "ScatterElements", 1)
    if draw(st.booleans()):
        axis = draw(st.integers(0, x.rank - 1))
        sizes = [min(2, size) for size in x.sizes]
        sizes[axis] = 1
        updates = draft.constant(new_array(draft, x.dtype, sizes))
        index = _indices(draw, draft, x.sizes[axis], sizes)
        draft.add("ScatterElements", [x, index, updates], axis=axis)
    else:
        index = draft.constant(np.array([[0] * x.rank], np.int64))
        draft.add("ScatterND", [x, index, draft.constant(new_array(draft, x.dtype, [1]))])


def pad(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Pad", 1)
    pads = [draw(st.integers(-1, 2)) for _ in range(2 * x.rank)]
    mode = draw(st.sampled_from(("constant", "reflect", "edge", "wrap")))
    if draft.opset < 11:
        draft.add("Pad", [x], pads=pads, mode=mode)
        return
    value = draft.constant(new_array(draft, x.dtype, ())) if draw(st.booleans()) else None
    draft.add("Pad", [x, draft.ints(*pads), value], mode=mode)


def repeat(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "Tile", 1)
    if draw(st.booleans()):
        draft.add("Tile", [x, draft.ints(*[draw(st.integers(0, 2)) for _ in range(x.rank)])])
    else:
        more = [draw(st.sampled_from((1, 2)))] if draw(st.booleans()) else []
        sizes = [size if size != 1 else draw(st.integers(1, 3)) for size in x.sizes]
        ones = [
            1 if not isinstance(it, int) else size
            for it, size in zip(x.shape or [], sizes, strict=False)
        ]
        draft.add("Expand", [x, draft.ints(*more, *ones)])


def top(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "TopK", 1)
    axis = axis_of(draw, x)
    k = draw(st.integers(0, x.sizes[axis]))
    if draft.opset < 10:
        draft.add("TopK", [x], 2, axis=axis % x.rank, k=k)
        return
    attributes = {"largest": draw(st.integers(0, 1))} if draft.opset >= 11 else {}
    draft.add("TopK", [x, draft.ints(k)], 2, axis=axis, **attributes)


def one_hot(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, INT64, (0, 3))
    depth = draft.constant(np.array(draw(st.integers(1, 4)), np.int64))
    values = draft.constant(np.array([0, 1], draw(st.sampled_from((np.float32, np.int64)))))
    draft.add("OneHot", [x, depth, values], axis=draw(st.sampled_from((-1, 0))))


def from_shape(draw: st.DrawFn, draft: Draft) -> None:
    """Tensors whose sizes or values come from the shape of another."""
    x = _any(draw, draft, "Shape", 1)
    (shape,) = draft.add("Shape", [x])
    how = draw(st.sampled_from(("ConstantOfShape", "Range", "Expand", "Gather", "EyeLike")))
    if how == "ConstantOfShape":
        array = new_array(draft, np.dtype(draw(st.sampled_from((np.float32, np.int64)))), [1])
        draft.add(how, [shape], value=numpy_helper.from_array(array))
    elif how == "Expand":
        draft.add(how, [draft.constant(new_array(draft, np.dtype(np.float32), [1])), shape])
    elif how == "EyeLike":
        draft.add(how, [tensor(draw, draft, ranks=(2, 2))], k=draw(st.integers(-1, 1)))
    else:
        index = draft.constant(np.array(draw(st.integers(0, x.rank - 1)), np.int64))
        (size,) = draft.add("Gather", [shape, index])
        if how == "Range":
            zero, one = (draft.constant(np.array(it, np.int64)) for it in (0, 1))
            draft.add("Range", [zero, size, one])


def chosen(draw: st.DrawFn, draft: Draft) -> None:
    """As many elements as the values say."""
    how = draw(st.sampled_from(("NonZero", "Unique", "Compress", "Trilu")))
    if how == "NonZero":
        draft.add(how, [_any(draw, draft, "NonZero", 1)])
    elif how == "Unique":
        x = _any(draw, draft, "Unique", 1)
        draft.add(how, [x], draw(st.integers(1, 4)), sorted=draw(st.integers(0, 1)))
    elif how == "Compress":
        x = _any(draw, draft, "Compress", 1)
        keeps = draft.constant(new_array(draft, np.dtype(bool), [draw(st.integers(1, 3))]))
        draft.add(how, [x, keeps], axis=0 if draw(st.booleans()) else x.rank - 1)
    else:
        draft.add(how, [_any(draw, draft, "Trilu", 2)], upper=draw(st.integers(0, 1)))


def blocks(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, dtypes_of("SpaceToDepth", draft.opset), (4, 4))
    if draw(st.booleans()):
        draft.add("SpaceToDepth", [x], blocksize=2)
    else:
        draft.add("DepthToSpace", [x], blocksize=draw(st.sampled_from((1, 2))))


def reverse(draw: st.DrawFn, draft: Draft) -> None:
    x = _any(draw, draft, "ReverseSequence", 2)
    if x.shape and isinstance(x.shape[1], int):
        lengths = draft.constant(draft.rng.integers(0, x.sizes[0] + 1, x.sizes[1]))
        draft.add("ReverseSequence", [x, lengths], time_axis=0, batch_axis=1)


STEPS = (
    transpose,
    reshape,
    squeeze,
    concat,
    split,
    slice_,
    gather,
    scatter,
    pad,
    repeat,
    top,
    one_hot,
    from_shape,
    chosen,
    blocks,
    reverse,
)
