"""Which operators of onnxruntime give other bits on another number of threads.

    python -m bench.determinism [-x out.json] [OPERATOR ...]

Runs onnx's backend tests of single operators, and operators on inputs that are large enough to be
divided, on 1, 2, 3, 4 and 6 threads, twice each, and compares bits. Fails if one varies that
deepsched/models/repeatability.py does not list. Takes some minutes; threads beyond the machine's
cores do as well.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deepsched.models.repeatability import varying_operators

NUM_THREADS = (1, 2, 3, 4, 6)
MICROSOFT = "com.microsoft"
ML = "ai.onnx.ml"
RNG = np.random.default_rng(0)

Array = NDArray[Any]


class Constant(NamedTuple):
    """An input that is an initializer."""

    content: Array


class Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]


def floats(*shape: int, dtype: Any = np.float32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def fixed(*shape: int, dtype: Any = np.float32) -> Constant:
    return Constant(floats(*shape, dtype=dtype))


def codes(*shape: int) -> Array:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def scalar(value: float, dtype: Any = np.float32) -> Constant:
    return Constant(np.array(value, dtype))


SCALE, ZERO = scalar(0.02), scalar(128, np.uint8)


def case(
    op_type: str,
    inputs: list[Array | Constant | None],
    *,
    domain: str = "",
    opset: int = 21,
    num_outputs: int = 1,
    **attributes: Any,
) -> Case:
    names, values, initializers, feeds = [], [], [], {}
    for index, content in enumerate(inputs):
        name = "" if content is None else f"x{index}"
        names.append(name)
        if isinstance(content, Constant):
            initializers.append(numpy_helper.from_array(content.content, name))
        elif content is not None:
            dtype = helper.np_dtype_to_tensor_dtype(content.dtype)
            values.append(helper.make_tensor_value_info(name, dtype, content.shape))
            feeds[name] = content
    outputs = [f"y{index}" for index in range(num_outputs)]
    node = helper.make_node(op_type, names, outputs, domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "case", values, [onnx.ValueInfoProto(name=name) for name in outputs], initializers
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 3 if domain == ML else 1))
    shapes = [
        "-" if it is None else "x".join(map(str, np.shape(getattr(it, "content", it))))
        for it in inputs
    ]
    kind = next((str(it.dtype) for it in feeds.values()), "")
    return Case(
        f"{op_type} {kind} {' '.join(shapes[:3])} {attributes or ''}"[:150],
        helper.make_model(graph, opset_imports=opsets, ir_version=10),
        feeds,
    )


def elementwise() -> Iterator[Case]:
    unary = (
        "Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish "
        "LeakyRelu Log Mish Reciprocal Relu Round Selu Shrink Sigmoid Sin Sinh Softplus Softsign "
        "Sqrt Swish Tan Tanh ThresholdedRelu"
    )
    for op_type, dtype, size in itertools.product(
        unary.split(), (np.float32, np.float64, np.float16), (7777, 100_003, 1_000_001)
    ):
        x = floats(size, dtype=dtype)
        if op_type in ("Log", "Sqrt", "Acosh"):
            x = np.abs(x) + dtype(1)
        if op_type in ("Acos", "Asin", "Atanh"):
            x = np.tanh(x)
        yield case(op_type, [x], opset=24 if op_type == "Swish" else 21)
    for op_type in ("Gelu", "QuickGelu"):
        yield case(op_type, [floats(3, 127, 3073)], domain=MICROSOFT)
    for op_type in ("FastGelu", "BiasGelu"):
        yield case(op_type, [floats(3, 127, 3073), floats(3073)], domain=MICROSOFT)
    for op_type, dtype in itertools.product(
        ("Add", "Mul", "Div", "Sub", "Pow", "Max", "Min", "PRelu", "Sum", "Mean"),
        (np.float32, np.float64),
    ):
        x = np.abs(floats(3, 1001, 103, dtype=dtype))
        for other in (np.abs(floats(103, dtype=dtype)), x + dtype(0.2), np.array([1.7], dtype)):
            yield case(op_type, [x, other])


def products() -> Iterator[Case]:
    for dtype, rows, (inner, columns) in itertools.product(
        (np.float32, np.float64),
        (1, 3, 33, 257),
        ((768, 64), (512, 300), (64, 4000), (8192, 33), (1000, 1000)),
    ):
        x, w = floats(rows, inner, dtype=dtype), floats(inner, columns, dtype=dtype)
        bias = floats(columns, dtype=dtype)
        yield case("MatMul", [x, w])
        yield case("MatMul", [x, Constant(w)])
        yield case("Gemm", [x, Constant(w.T.copy()), Constant(bias)], transB=1)
        yield case("Gemm", [x.T.copy(), w, bias], transA=1)
        if dtype == np.float32:
            yield case("FusedMatMul", [x, w], domain=MICROSOFT)
            yield case("FusedGemm", [x, w, bias], domain=MICROSOFT, activation="Relu")
            quantized = Constant(codes(inner, columns))
            yield case("MatMulInteger", [codes(rows, inner), quantized])
            yield case(
                "DynamicQuantizeMatMul", [x, quantized, SCALE, ZERO, Constant(bias)],
                domain=MICROSOFT,
            )  # fmt: skip
            yield case(
                "MatMulIntegerToFloat", [codes(rows, inner), quantized, SCALE, SCALE, ZERO, ZERO],
                domain=MICROSOFT,
            )  # fmt: skip
            yield case(
                "QGemm", [codes(rows, inner), SCALE, ZERO, quantized, SCALE, ZERO],
                domain=MICROSOFT,
            )  # fmt: skip
            for bits, level in itertools.product((2, 4, 8), (0, 4)):
                packed = codes(columns, inner // 32, 4 * bits)
                scales = Constant(np.abs(floats(columns * inner // 32)))
                yield case(
                    "MatMulNBits", [x, Constant(packed), scales],
                    domain=MICROSOFT, K=inner, N=columns, bits=bits, block_size=32,
                    accuracy_level=level,
                )  # fmt: skip
    yield case("MatMul", [floats(12, 64, 128), floats(12, 128, 64)])
    yield case("Einsum", [floats(33, 3072), floats(3072, 64)], equation="ij,jk->ik")


def convolutions() -> Iterator[Case]:
    for channels, size, batch, kernel, stride in itertools.product(
        (3, 16, 33, 64), ((31, 29), (112, 112)), (1, 3), (1, 3, 5), (1, 2)
    ):
        x, strides = floats(batch, channels, *size), [stride, stride]
        yield case("Conv", [x, fixed(40, channels, kernel, kernel), fixed(40)], strides=strides)
        weights = fixed(channels, 24, kernel, kernel)
        yield case("ConvTranspose", [x, weights, fixed(24)], strides=strides)
    for batch in (1, 3):
        yield case("Conv", [floats(batch, 96, 56, 56), fixed(96, 1, 3, 3)], group=96)
        yield case("Conv", [floats(batch, 64, 3000), fixed(128, 64, 5)])
        yield case("Conv", [floats(batch, 16, 12, 28, 28), fixed(32, 16, 3, 3, 3)])
        yield case("ConvInteger", [codes(batch, 32, 40, 40), Constant(codes(48, 32, 3, 3))])
        weights = Constant(codes(48, 32, 3, 3))
        yield case(
            "QLinearConv",
            [codes(batch, 32, 40, 40), SCALE, ZERO, weights, SCALE, ZERO, SCALE, ZERO],
        )
        x = floats(batch, 16, 32, 32)
        offsets = floats(batch, 18, 30, 30)
        yield case("DeformConv", [x, floats(16, 16, 3, 3), offsets], kernel_shape=[3, 3])


def normalizations() -> Iterator[Case]:
    for dtype, shape in itertools.product(
        (np.float32, np.float64), ((3, 128, 768), (1, 200_001), (700, 33), (2, 3, 7, 1111))
    ):
        x, scale = floats(*shape, dtype=dtype), floats(shape[-1], dtype=dtype)
        for op_type, axis in itertools.product(
            ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), (-1, 1, 0)
        ):
            yield case(op_type, [x], axis=axis)
        yield case("LayerNormalization", [x, scale, scale])
        yield case("SimplifiedLayerNormalization", [x, scale])
        yield case("RMSNormalization", [x, scale], opset=23)
        yield case("CumSum", [x, scalar(1, np.int64)])
    for channels, size in itertools.product((3, 16, 33, 64), ((31, 29), (112, 112))):
        x, scale = floats(2, channels, *size), floats(channels)
        yield case("LRN", [x], size=5)
        yield case("InstanceNormalization", [x, scale, scale])
        yield case("GroupNormalization", [x, scale, scale], num_groups=1)
        yield case("BatchNormalization", [x, scale, scale, scale, np.abs(scale)])
        yield case("MeanVarianceNormalization", [x])
        for op_type in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
            yield case(op_type, [x])
        for op_type in ("AveragePool", "MaxPool", "LpPool"):
            yield case(op_type, [x], kernel_shape=[3, 3])
    x, scale = floats(3, 127, 769), floats(769)
    yield case("SkipLayerNormalization", [x, x, scale, scale], domain=MICROSOFT)
    yield case("SkipSimplifiedLayerNormalization", [x, x, scale], domain=MICROSOFT)


def reductions() -> Iterator[Case]:
    for name, dtype, shape in itertools.product(
        ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"],
        (np.float32, np.float64),
        ((300, 40, 50), (1, 7, 100_003), (2, 300, 40, 50), (50, 3001, 5), (1, 100_003)),
    ):
        x = floats(*shape, dtype=dtype)
        if name in ("LogSum", "Prod"):
            x = (np.abs(x) * 0.001 + 0.999).astype(dtype)
        for axes in ([0], [1], [len(shape) - 1], [0, 1], [0, len(shape) - 1], [*range(len(shape))]):
            yield case(f"Reduce{name}", [x, Constant(np.array(axes))])
    for axis in (0, 1):
        yield case("ArgMax", [floats(50, 3001, 5)], axis=axis)
    yield case("TopK", [floats(3, 40_000), Constant(np.array([100]))], num_outputs=2)


def recurrent() -> Iterator[Case]:
    for batch, hidden in itertools.product((1, 3, 16), (16, 100, 256)):
        for (op_type, gates, biases), directions in itertools.product(
            (("LSTM", 4, 8), ("GRU", 3, 6), ("RNN", 1, 2)), (1, 2)
        ):
            weights = [
                fixed(directions, gates * hidden, 64),
                fixed(directions, gates * hidden, hidden),
                fixed(directions, biases * hidden),
            ]
            direction = ["forward", "bidirectional"][directions - 1]
            yield case(
                op_type, [floats(20, batch, 64), *weights], num_outputs=2, hidden_size=hidden,
                direction=direction,
            )  # fmt: skip
        quantized = Constant(codes(1, hidden, 4 * hidden))
        scale, zero = Constant(np.full(1, 0.01, np.float32)), Constant(np.full(1, 128, np.uint8))
        yield case(
            "DynamicQuantizeLSTM",
            [floats(20, batch, hidden), quantized, quantized, fixed(1, 8 * hidden), *[None] * 4,
             scale, zero, scale, zero],
            domain=MICROSOFT, num_outputs=2, hidden_size=hidden,
        )  # fmt: skip


def attention() -> Iterator[Case]:
    for batch in (1, 3):
        x = floats(batch, 128, 512)
        weights, bias = fixed(512, 1536), fixed(1536)
        for causal in (0, 1):
            yield case(
                "Attention", [x, weights, bias], domain=MICROSOFT, num_heads=8,
                unidirectional=causal,
            )  # fmt: skip
        for queries, keys in ((128, 128), (1, 500), (1024, 1024)):
            q, k = floats(batch, queries, 512), floats(batch, keys, 512)
            yield case("MultiHeadAttention", [q, k, k], domain=MICROSOFT, num_heads=8)
        past = np.zeros((batch, 2, 0, 64), np.float32)
        few, ends = floats(batch, 128, 128), np.full(batch, 127, np.int32)
        yield case(
            "GroupQueryAttention", [x, few, few, past, past, ends, np.array(128, np.int32)],
            domain=MICROSOFT, num_outputs=3, num_heads=8, kv_num_heads=2,
        )  # fmt: skip
        heads = floats(batch, 8, 128, 64)
        yield case("Attention", [heads, heads, heads], opset=23)
        quantized = [codes(batch, 128, 512), Constant(codes(512, 1536)), bias, SCALE, SCALE]
        yield case("QAttention", [*quantized, None, ZERO, ZERO], domain=MICROSOFT, num_heads=8)


def others() -> Iterator[Case]:
    for reduction, count in itertools.product(("none", "add", "mul", "max", "min"), (50, 20_000)):
        zeros, updates = np.zeros((1000, 100), np.float32), floats(count, 100)
        rows = RNG.integers(0, 1000, (count, 100))
        if reduction != "none":  # else the last of several for one place wins
            yield case("ScatterElements", [zeros, rows, updates], reduction=reduction, axis=0)
            yield case("ScatterND", [zeros, rows[:, :1], updates], reduction=reduction)
    for mode, antialias in (("linear", 0), ("cubic", 0), ("linear", 1), ("cubic", 1)):
        scales = np.array([1, 1, 0.4, 0.4] if antialias else [1, 1, 2.3, 2.7], np.float32)
        yield case("Resize", [floats(2, 7, 133, 65), None, scales], mode=mode, antialias=antialias)
    yield case("GridSample", [floats(3, 16, 64, 64), floats(3, 80, 80, 2)])
    yield case("DynamicQuantizeLinear", [floats(3, 300_000)], num_outputs=3)
    yield case("QuantizeLinear", [floats(3, 1001, 103), SCALE, ZERO])
    yield case("DequantizeLinear", [codes(3, 1001, 103), SCALE, ZERO])
    yield case("DFT", [floats(3, 4096, 1), None, scalar(1, np.int64)])
    yield case("STFT", [floats(3, 16_000, 1), scalar(160, np.int64), floats(400)], opset=17)
    for op_type in ("RandomNormalLike", "RandomUniformLike"):
        yield case(op_type, [floats(1000, 100)], seed=1.0)
    yield case("Bernoulli", [np.full((1000, 100), 0.5, np.float32)], seed=1.0)
    yield case("Multinomial", [floats(10, 100)], seed=1.0, sample_size=50)
    training = [floats(1000, 100), scalar(0.5), Constant(np.array(True))]
    yield case("Dropout", training, seed=1)
    for rows in (1, 40, 3000):
        yield case(
            "SVMRegressor", [floats(rows, 20)], domain=ML, kernel_type="RBF",
            kernel_params=[0.1, 0.0, 3.0], n_supports=300, rho=[0.1],
            support_vectors=floats(6000).tolist(), coefficients=floats(300).tolist(),
        )  # fmt: skip
        yield case(
            "LinearRegressor", [floats(rows, 2000)], domain=ML, intercepts=[0.1],
            coefficients=floats(2000).tolist(),
        )  # fmt: skip
        for num_trees in (1, 10, 300):
            yield forest(num_trees, rows)


def forest(num_trees: int, rows: int, depth: int = 4) -> Case:
    """Full binary trees of random decisions."""
    num_inner = 2**depth - 1
    nodes = list(itertools.product(range(num_trees), range(2 * num_inner + 1)))
    inner = [number < num_inner for _, number in nodes]
    leaves = [node for node, is_inner in zip(nodes, inner, strict=True) if not is_inner]
    return case(
        "TreeEnsembleRegressor",
        [floats(rows, 20)],
        domain=ML,
        nodes_treeids=[tree for tree, _ in nodes],
        nodes_nodeids=[number for _, number in nodes],
        nodes_featureids=[int(RNG.integers(20)) for _ in nodes],
        nodes_values=floats(len(nodes)).tolist(),
        nodes_modes=["BRANCH_LEQ" if is_inner else "LEAF" for is_inner in inner],
        nodes_truenodeids=[2 * n + 1 if n < num_inner else 0 for _, n in nodes],
        nodes_falsenodeids=[2 * n + 2 if n < num_inner else 0 for _, n in nodes],
        target_treeids=[tree for tree, _ in leaves],
        target_nodeids=[number for _, number in leaves],
        target_ids=[0] * len(leaves),
        target_weights=floats(len(leaves)).tolist(),
        n_targets=1,
    )


def backend_tests() -> Iterator[Case]:
    """onnx's own, of one operator each."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of what the tests expect
        tests = load_model_tests(kind="node")
    for test in tests:
        names = [value.name for value in test.model.graph.input]
        given = test.data_sets[0][0]
        if len(names) == len(given) and all(isinstance(it, np.ndarray) for it in given):
            yield Case(test.name, test.model, dict(zip(names, given, strict=True)))


def bits_of(output: Any) -> bytes:
    if isinstance(output, np.ndarray) and output.dtype != object:
        return output.tobytes()
    return repr(output).encode()  # strings, sequences


def bits(model: bytes, inputs: dict[str, Array], num_threads: int) -> list[tuple[bytes, ...]]:
    """The outputs of two runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [
        tuple(map(bits_of, outputs))
        for outputs in (session.run(None, inputs), session.run(None, inputs))
    ]


def varies(it: Case) -> str:
    """ "by run", "by width", or empty."""
    model = it.model.SerializeToString()
    found = [bits(model, it.inputs, num_threads) for num_threads in NUM_THREADS]
    if any(first != second for first, second in found):
        return "by run"
    return "" if len({first for first, _ in found}) == 1 else "by width"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("operators", nargs="*", help="only these; by default all")
    parser.add_argument("-x", "--export_path", type=Path, help="write what varies there, as JSON")
    args = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    found: list[dict[str, Any]] = []
    for it in itertools.chain(
        backend_tests(), elementwise(), products(), convolutions(), normalizations(),
        reductions(), recurrent(), attention(), others(),
    ):  # fmt: skip
        op_types = {node.op_type for node in it.model.graph.node}
        if args.operators and not op_types.intersection(args.operators):
            continue
        try:
            how = varies(it)
        except Exception:  # this onnxruntime has no such kernel, for this type
            counts["not run"] += 1
            continue
        counts[how or "the same"] += 1
        if how:
            is_listed = any(varying_operators(it.model))
            found.append({"case": it.name, "varies": how, "is_listed": is_listed})
            print(f"{how}: {it.name}{'' if is_listed else '   NOT LISTED'}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    if args.export_path:
        args.export_path.write_text(json.dumps(found, indent=2))
    if not all(it["is_listed"] for it in found):
        sys.exit("some vary that deepsched/models/repeatability.py does not list")


if __name__ == "__main__":
    main()
