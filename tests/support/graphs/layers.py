"""Operators with weights or windows: products, convolutions, pools, normalizations, recurrences."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.support.graphs.draft import Draft, Refused, Value
from tests.support.graphs.picking import FLOAT32, FLOATS, dtypes_of, new_array, tensor


def _weights(draft: Draft, dtype: np.dtype, *sizes: int) -> Value:
    return draft.constant(new_array(draft, dtype, sizes))


def _vector(draw: st.DrawFn, draft: Draft, dtype: np.dtype, size: int) -> Value | None:
    return _weights(draft, dtype, size) if draw(st.booleans()) else None


def matmul(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, dtypes_of("MatMul", draft.opset), (1, 4))
    width = draw(st.sampled_from((1, 3, 8, 40)))
    w = _weights(draft, x.dtype, x.sizes[-1], width)
    how = draw(st.sampled_from(("weights", "weights", "itself", "left", "Einsum")))
    if how == "weights":
        (y,) = draft.add("MatMul", [x, w])
        after = draw(st.sampled_from((None, "Relu", "Add", "Tanh")))
        if after == "Add":
            draft.add("Add", [y, _weights(draft, x.dtype, width)])
        elif after is not None:
            draft.add(after, [y])
    elif how == "itself":
        turned = [*range(x.rank - 2), x.rank - 1, x.rank - 2] if x.rank > 1 else [0]
        draft.add("MatMul", [x, *draft.add("Transpose", [x], perm=turned)])
    elif how == "left" and x.rank > 1:
        draft.add("MatMul", [_weights(draft, x.dtype, 2, x.sizes[-2]), x])
    else:
        draft.add("Einsum", [x, w], equation="...i,ij->...j")


def gemm(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, dtypes_of("Gemm", draft.opset), (2, 2))
    width = draw(st.sampled_from((1, 8, 33)))
    sizes = [x.sizes[1], width]
    is_turned = draw(st.integers(0, 1))
    bias = draw(st.sampled_from((None, (width,), (1, width), ())))
    if bias is None and draft.opset < 11:
        bias = (width,)
    (y,) = draft.add(
        "Gemm",
        [
            x,
            _weights(draft, x.dtype, *(sizes[::-1] if is_turned else sizes)),
            None if bias is None else _weights(draft, x.dtype, *bias),
        ],
        transB=is_turned,
        alpha=draw(st.sampled_from((1.0, 0.5))),
        beta=draw(st.sampled_from((1.0, 2.0))),
    )
    if draw(st.booleans()):
        draft.add(draw(st.sampled_from(("Relu", "Sigmoid", "LeakyRelu"))), [y])


def _picture(draw: st.DrawFn, draft: Draft, op_type: str) -> Value:
    dtypes = tuple(it for it in dtypes_of(op_type, draft.opset) if it.kind == "f")
    return _filled(
        tensor(draw, draft, dtypes, (3, 4), lambda it: isinstance((it.shape or [None] * 2)[1], int))
    )


def _filled(value: Value) -> Value:
    """Windows and recurrences on no elements end the process in plain onnxruntime (1.32)."""
    if 0 in value.sizes:
        raise Refused("no elements")
    return value


def convolution(draw: st.DrawFn, draft: Draft) -> None:
    is_transposed = draw(st.integers(0, 4)) == 0
    op_type = "ConvTranspose" if is_transposed else "Conv"
    x = _picture(draw, draft, op_type)
    channels, spatial = x.sizes[1], x.rank - 2
    made = draw(st.sampled_from((1, 4, 8, 16)))
    groups = channels if draw(st.integers(0, 3)) == 0 else 1
    made = groups * max(made // groups, 1)
    kernel = [draw(st.sampled_from((1, 2, 3))) for _ in range(spatial)]
    sizes = [channels, made // groups] if is_transposed else [made, channels // groups]
    attributes: dict[str, Any] = {"group": groups}
    if draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, 1)) for _ in range(2 * spatial)]
    elif draw(st.booleans()):
        attributes["auto_pad"] = draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER", "VALID")))
    if draw(st.booleans()):
        attributes["strides"] = [draw(st.integers(1, 2)) for _ in range(spatial)]
    if draw(st.integers(0, 3)) == 0:
        attributes["dilations"] = [2] * spatial
    (y,) = draft.add(
        op_type,
        [x, _weights(draft, x.dtype, *sizes, *kernel), _vector(draw, draft, x.dtype, made)],
        **attributes,
    )
    after = draw(st.sampled_from((None, "BatchNormalization", "Mul", "Relu", "Clip", "Sum")))
    if after == "BatchNormalization":
        _batch_norm(draw, draft, y)
    elif after == "Mul":
        draft.add("Mul", [y, _weights(draft, x.dtype, made, *[1] * spatial)])
    elif after == "Sum":
        draft.add("Relu", draft.add("Add", [y, *draft.add("Sigmoid", [y])]))
    elif after is not None:
        draft.add(after, [y])


def _batch_norm(draw: st.DrawFn, draft: Draft, x: Value) -> None:
    size = x.sizes[1]
    three = [_weights(draft, x.dtype, size) for _ in range(3)]
    variance = draft.constant(np.abs(new_array(draft, x.dtype, [size])) + x.dtype.type(0.5))
    draft.add("BatchNormalization", [x, *three, variance])


def pool(draw: st.DrawFn, draft: Draft) -> None:
    op_type = draw(
        st.sampled_from(("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"))
    )
    x = _picture(draw, draft, op_type)
    if op_type.startswith("Global"):
        draft.add(op_type, [x])
        return
    spatial = x.rank - 2
    attributes: dict[str, Any] = {"kernel_shape": [draw(st.integers(1, 3)) for _ in range(spatial)]}
    if draw(st.booleans()):
        attributes["strides"] = [draw(st.integers(1, 2))] * spatial
    if draw(st.booleans()):
        attributes["pads"] = [0] * spatial + [min(1, attributes["kernel_shape"][0] - 1)] * spatial
    if draft.opset >= 10 and op_type != "LpPool" and draw(st.booleans()):
        attributes["ceil_mode"] = 1
    num_outputs = 2 if op_type == "MaxPool" and draw(st.booleans()) else 1
    draft.add(op_type, [x], num_outputs, **attributes)


def normalization(draw: st.DrawFn, draft: Draft) -> None:
    op_type = draw(
        st.sampled_from(
            (
                "BatchNormalization",
                "InstanceNormalization",
                "LayerNormalization",
                "GroupNormalization",
                "RMSNormalization",
                "LRN",
                "MeanVarianceNormalization",
            )
        )
    )
    if op_type == "LayerNormalization" and draft.opset < 17:
        raise Refused("in a function, plain onnxruntime (1.32) ends the process")
    x = _picture(draw, draft, op_type)
    channels = x.sizes[1]
    if op_type == "BatchNormalization":
        _batch_norm(draw, draft, x)
    elif op_type == "LRN":
        draft.add(op_type, [x], size=draw(st.sampled_from((1, 3, 5))), alpha=0.02)
    elif op_type == "MeanVarianceNormalization":
        draft.add(op_type, [x])
    elif op_type in ("LayerNormalization", "RMSNormalization"):
        shift = [_vector(draw, draft, x.dtype, x.sizes[-1])] if op_type[0] == "L" else []
        draft.add(op_type, [x, _weights(draft, x.dtype, x.sizes[-1]), *shift])
    else:
        groups = {"num_groups": 2} if op_type[0] == "G" else {}
        two = [_weights(draft, x.dtype, channels) for _ in range(2)]
        draft.add(op_type, [x, *two], **groups)


def resize(draw: st.DrawFn, draft: Draft) -> None:
    x = _filled(tensor(draw, draft, dtypes_of("Resize", draft.opset), (4, 4)))
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    scales = draft.constant(np.array([1, 1, draw(st.sampled_from((0.5, 1, 2))), 2], np.float32))
    if draft.opset < 10:
        draft.add("Upsample", [x, scales], mode="nearest")
    elif draft.opset == 10:
        draft.add("Resize", [x, scales], mode="nearest")
    else:
        roi = draft.constant(np.zeros(0, np.float32)) if draft.opset < 13 else None
        how = draw(st.sampled_from(("half_pixel", "asymmetric", "align_corners")))
        draft.add("Resize", [x, roi, scales], mode=mode, coordinate_transformation_mode=how)


def recurrence(draw: st.DrawFn, draft: Draft) -> None:
    """Steps first; with and without bias, lengths, states."""
    op_type = draw(st.sampled_from(("LSTM", "GRU", "RNN")))
    x = _filled(tensor(draw, draft, FLOAT32, (3, 3)))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    hidden = draw(st.integers(1, 4))
    direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    ways = 2 if direction == "bidirectional" else 1
    w = _weights(draft, x.dtype, ways, gates * hidden, x.sizes[2])
    r = _weights(draft, x.dtype, ways, gates * hidden, hidden)
    bias = _weights(draft, x.dtype, ways, 2 * gates * hidden) if draw(st.booleans()) else None
    attributes: dict[str, Any] = {}
    if op_type == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    draft.add(
        op_type,
        [x, w, r, bias],
        draw(st.integers(1, 3 if op_type == "LSTM" else 2)),
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )


def quantized(draw: st.DrawFn, draft: Draft) -> None:
    """QuantizeLinear and back, with a layer between: ONNX Runtime fuses them."""
    x = tensor(draw, draft, FLOAT32, (1, 4))
    dtype = np.dtype(draw(st.sampled_from((np.uint8, np.int8))))
    scale = draft.constant(np.float32(draw(st.sampled_from((0.1, 0.02)))))
    zero = draft.constant(np.array(draw(st.sampled_from((0, 3))), dtype))

    def there_and_back(value: Value) -> Value:
        (small,) = draft.add("QuantizeLinear", [value, scale, zero])
        return draft.add("DequantizeLinear", [small, scale, zero])[0]

    y = there_and_back(x)
    how = draw(st.sampled_from(("nothing", "MatMul", "Relu", "Add", "integers")))
    if how == "MatMul":
        w = draft.constant(draft.rng.integers(-9, 9, (x.sizes[-1], 8)).astype(np.int8))
        zero_w = draft.constant(np.int8(0))
        y = draft.add("MatMul", [y, *draft.add("DequantizeLinear", [w, scale, zero_w])])[0]
    elif how == "Relu":
        y = draft.add("Relu", [y])[0]
    elif how == "Add":
        y = draft.add("Add", [y, y])[0]
    elif how == "integers":
        (small,) = draft.add("QuantizeLinear", [x, scale, zero])
        w = draft.constant(draft.rng.integers(-9, 9, (x.sizes[-1], 8)).astype(np.int8))
        (sums,) = draft.add("MatMulInteger", [small, w, zero])
        draft.add("Cast", [sums], to=1)
        return
    there_and_back(y)


def fused(draw: st.DrawFn, draft: Draft) -> None:
    """onnxruntime's own operators, which models come with once they are optimised."""
    x = tensor(draw, draft, FLOAT32, (2, 4))
    width = x.sizes[-1]
    how = draw(
        st.sampled_from(
            ("BiasGelu", "FastGelu", "QuickGelu", "FusedMatMul", "SkipLayerNormalization")
        )
    )
    one = _weights(draft, x.dtype, width)
    if how == "FusedMatMul":
        w = _weights(draft, x.dtype, 5, width)
        draft.add(how, [x, w], domain="com.microsoft", transB=1, alpha=0.5)
    elif how == "SkipLayerNormalization":
        draft.add(how, [x, x, one, one], domain="com.microsoft")
    else:
        draft.add(how, [x, one][: 1 if how == "QuickGelu" else 2], domain="com.microsoft")


def loss(draw: st.DrawFn, draft: Draft) -> None:
    x = tensor(draw, draft, FLOATS[:2], (2, 2))
    target = draft.add("ArgMax", [x], axis=1, keepdims=0)
    op_type = draw(st.sampled_from(("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")))
    draft.add(op_type, [x, *target], reduction=draw(st.sampled_from(("none", "mean", "sum"))))


STEPS = (
    matmul,
    matmul,
    gemm,
    convolution,
    convolution,
    pool,
    normalization,
    resize,
    recurrence,
    quantized,
    fused,
    loss,
)
