"""SparseZoo's Model, as far as DeepSparse's tests use it: small local models, by kind of stub."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_SIZES = {"yolo": 640}


class Model:
    """
    Args:
        source: a stub such as "zoo:cv/...", of which only the kind counts, or a Model.
    """

    def __init__(self, source: str | Model, download_path: str | None = None) -> None:
        stub = source.source if isinstance(source, Model) else source
        self.source = stub
        folder = Path(os.environ["PEERS_MODELS"])
        folder.mkdir(parents=True, exist_ok=True)
        kind = next((it for it in ("bert", "yolo") if it in stub), "pictures")
        path = folder / f"{kind}.onnx"
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            onnx.save(_bert() if kind == "bert" else _pictures(_SIZES.get(kind, 224)), unfinished)
            unfinished.rename(path)
        self.path = str(path)
        self.onnx_model = SimpleNamespace(path=self.path)

    def sample_batch(self, batch_size: int) -> dict[str, list[np.ndarray]]:
        """Inputs, and what plain onnxruntime answers."""
        session = _session(self.path)
        x = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224)).astype(np.float32)
        return {"sample_inputs": [x], "sample_outputs": session.run(None, {"input": x})}


@cache
def _session(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path)


def _pictures(size: int) -> onnx.ModelProto:
    """input -> output_0, scores; output_1, probabilities."""
    rng = np.random.default_rng(1)
    weights = {"filters": (16, 3, 7, 7), "classes": (16, 10)}
    nodes = [
        helper.make_node("Conv", ["input", "filters"], ["parts"], strides=[4, 4]),
        helper.make_node("Relu", ["parts"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("MatMul", ["features", "classes"], ["output_0"]),
        helper.make_node("Softmax", ["output_0"], ["output_1"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "pictures",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10])
            for name in ("output_0", "output_1")
        ],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _bert() -> onnx.ModelProto:
    """Three inputs of whole numbers, batch and length open, as language models have them."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    nodes = [
        helper.make_node("Sum", [f"{name}_float" for name in names], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["logits"], axis=1),
    ]
    casts = [
        helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT) for name in names
    ]
    sizes = ["batch", "sequence"]
    graph = helper.make_graph(
        [*casts, *nodes],
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
