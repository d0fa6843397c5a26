"""Operators that work on one element, one axis or one pair at a time: any shape will do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.support.graphs.draft import Draft, Value, elem_type
from tests.support.graphs.picking import (
    FLOATS,
    axis_of,
    beside,
    dtypes_of,
    new_array,
    some_axes,
    tensor,
)

# fmt: off
_SINGLE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu",
    "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
    "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)

_PAIRS = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Mul", "Or", "PRelu", "Pow",
    "Sub", "Xor",
)

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)
# fmt: on

_FACTORS = {
    **dict.fromkeys(("Celu", "Elu", "LeakyRelu", "Swish", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Shrink": ("bias", "lambd"),
}

_ALONG_AXIS = ("Hardmax", "LogSoftmax", "LpNormalization", "Softmax")

_LISTS = ("Max", "Mean", "Min", "Sum")


def with_kernel(draw: st.DrawFn, draft: Draft, names: tuple[str, ...]) -> Any:
    """One of the operators, and what its kernels take."""
    op_type = draw(st.sampled_from(names))
    return op_type, dtypes_of(op_type, draft.opset)


def single(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, _SINGLE)
    attributes: dict[str, Any] = {
        name: draw(st.sampled_from((0.25, 1.0, 1.75)))
        for name in _FACTORS.get(op_type, ())
        if draw(st.booleans())
    }
    if op_type == "Gelu":
        attributes["approximate"] = draw(st.sampled_from(("none", "tanh")))
    draft.add(op_type, [tensor(draw, draft, dtypes)], **attributes)


def along_axis(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, _ALONG_AXIS)
    x = tensor(draw, draft, dtypes, (1, 9))
    attributes = {"axis": axis_of(draw, x)} if draw(st.booleans()) else {}
    draft.add(op_type, [x], **attributes)


def pair(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, _PAIRS)
    x = tensor(draw, draft, dtypes)
    attributes: dict[str, Any] = {}
    if op_type == "BitShift":
        attributes["direction"] = draw(st.sampled_from(("LEFT", "RIGHT")))
    if op_type == "Mod" and x.dtype.kind == "f":
        attributes["fmod"] = 1
    is_safe = op_type == "BitShift"
    both = [x, beside(draw, draft, x, is_safe)]
    if not is_safe and draw(st.booleans()):
        both.reverse()
    draft.add(op_type, both, **attributes)


def several(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, _LISTS)
    x = tensor(draw, draft, dtypes)
    others = [beside(draw, draft, x) for _ in range(draw(st.integers(0, 3)))]
    draft.add(op_type, [x, *others])


def where(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, dtypes_of("Where", draft.opset))
    condition = draft.add("Cast", [x], to=TensorProto.BOOL)[0] if x.dtype != object else None
    if condition is None or draw(st.booleans()):
        condition = draft.constant(new_array(draft, np.dtype(bool), [1] * x.rank))
    draft.add("Where", [condition, x, beside(draw, draft, x)])


def cast(draw: st.DrawFn, draft: Draft) -> None:
    """To a type, or to one that onnxruntime's Python has no arrays of and back."""
    dtypes = dtypes_of("Cast", draft.opset)
    x = tensor(draw, draft, dtypes)
    if draw(st.booleans()):
        kinds = "fiub" if x.dtype != object else "fi"
        to = draw(
            st.sampled_from([it for it in dtypes if it.kind in kinds or x.dtype.kind in "iu"])
        )
        draft.add("Cast", [x], to=elem_type(to))
        return
    names = ("BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4")
    between = getattr(TensorProto, draw(st.sampled_from(names)))
    condition = draft.constant(np.array(draw(st.booleans())))
    node = helper.make_node(
        "If",
        [condition.name],
        [draft.root.name("v")],
        then_branch=_there_and_back(draft, x, between),
        else_branch=_there_and_back(draft, x, between),
    )
    draft.add_node(node)


def _there_and_back(draft: Draft, x: Value, between: int) -> onnx.GraphProto:
    """A branch, so that the value between has no sample."""
    there, back = draft.root.name("v"), draft.root.name("v")
    nodes = [
        helper.make_node("Cast", [x.name], [there], to=between),
        helper.make_node("Cast", [there], [back], to=TensorProto.FLOAT),
    ]
    output = helper.make_tensor_value_info(back, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, draft.root.name("g"), [], [output])


def clip(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, dtypes_of("Clip", draft.opset))
    low, high = draw(st.sampled_from(((-1, 1), (0, 6), (None, 2), (0, None), (None, None))))
    if draft.opset < 11:
        limits = {"min": low, "max": high}
        draft.add("Clip", [x], **{key: float(it) for key, it in limits.items() if it is not None})
        return
    if x.dtype.kind == "u" and low is not None:
        low = 0
    draft.add(
        "Clip",
        [x, *[None if it is None else draft.constant(np.array(it, x.dtype)) for it in (low, high)]],
    )


def reduction(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, _REDUCTIONS)
    x = tensor(draw, draft, dtypes, (1, 9))
    attributes: dict[str, Any] = {"keepdims": draw(st.integers(0, 1))}
    inputs: list[Any] = [x]
    axes = some_axes(draw, x) if draw(st.integers(0, 3)) else None
    if axes is not None:
        if draft.opset < (13 if op_type == "ReduceSum" else 18):
            attributes["axes"] = axes
        else:
            inputs.append(draft.ints(*axes))
    elif draft.opset >= 18 and draw(st.booleans()):
        attributes["noop_with_empty_axes"] = 1
    draft.add(op_type, inputs, **attributes)


def arg(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, ("ArgMax", "ArgMin"))
    x = tensor(draw, draft, dtypes, (1, 9))
    draft.add(op_type, [x], axis=draw(st.integers(0, x.rank - 1)), keepdims=draw(st.integers(0, 1)))


def cumulative(draw: st.DrawFn, draft: Draft) -> None:
    op_type, dtypes = with_kernel(draw, draft, ("CumSum", "CumProd"))
    x = tensor(draw, draft, dtypes, (1, 9))
    axis = draft.constant(np.array(axis_of(draw, x), np.int64))
    draft.add(
        op_type,
        [x, axis],
        exclusive=draw(st.integers(0, 1)),
        reverse=draw(st.integers(0, 1)),
    )


def dynamic_quantization(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, FLOATS[:1])
    quantized = draft.add("DynamicQuantizeLinear", [x], 3)
    if draw(st.booleans()):
        draft.add("DequantizeLinear", quantized)


STEPS = (
    single,
    single,
    single,
    along_axis,
    pair,
    pair,
    pair,
    several,
    where,
    cast,
    clip,
    reduction,
    arg,
    cumulative,
    dynamic_quantization,
)
