"""Small ONNX models."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper


def make(nodes, inputs, outputs, initializers=(), opset=17, ir_version=8):
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def tensor(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def identity(shape=("n",), dtype=TensorProto.FLOAT, opset=17, ir_version=8):
    return make(
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", shape, dtype)],
        [tensor("y", shape, dtype)],
        opset=opset,
        ir_version=ir_version,
    )


def mlp(width=64, layers=3, batch="batch", activation="Relu"):
    """x -> MatMul, activation, ... -> y; weights from a fixed seed."""
    rng = np.random.default_rng(1)
    nodes, weights, previous = [], [], "x"
    for layer in range(layers):
        matrix = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
        output = "y" if layer == layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [previous, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node(activation, [f"m{layer}"], [output]))
        previous = output
    return make(nodes, [tensor("x", [batch, width])], [tensor("y", [batch, width])], weights)


def gemm(seed=0, size=256, ir_version=8, also_inputs=()):
    """y = relu(x @ w + b), with weights that are worth sharing."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((size, size)), "b": rng.standard_normal(size)}
    inputs = {"x": ["n", size], **{name: weights[name].shape for name in also_inputs}}
    return make(
        [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [tensor(name, shape) for name, shape in inputs.items()],
        [tensor("y", ["n", size])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
        opset=9 if ir_version < 4 else 17,
        ir_version=ir_version,
    )


def classifier():
    """input, pictures -> scores; takes a millisecond."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["input", "filters"], ["parts"], strides=[4, 4]),
        helper.make_node("Relu", ["parts"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("MatMul", ["features", "classes"], ["scores"]),
    ]
    weights = [("filters", (32, 3, 7, 7)), ("classes", (32, 10))]
    return make(
        nodes,
        [tensor("input", ["batch", 3, 224, 224])],
        [tensor("scores", ["batch", 10])],
        [
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights
        ],
    )


def add_two_inputs():
    """sum = a + b, and their shapes; int64 beside float, sizes that may be any."""
    return make(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Gather", ["a", "index"], ["row"]),
        ],
        [
            tensor("a", ["n", 3]),
            tensor("b", ["n", 3]),
            tensor("index", ["k"], TensorProto.INT64),
        ],
        [tensor("sum", ["n", 3]), tensor("row", ["k", 3])],
    )


def gather():
    """Fails inside the kernel where the index is out of range."""
    return make(
        [helper.make_node("Gather", ["x", "index"], ["y"])],
        [tensor("x", ["n"]), tensor("index", ["k"], TensorProto.INT64)],
        [tensor("y", ["k"])],
    )


def gram():
    """y = x @ x.T, in one operator, for x of any two dimensions."""
    return make(
        [helper.make_node("Gemm", ["x", "x"], ["y"], transB=1)],
        [tensor("x", ["n", "k"])],
        [tensor("y", ["n", "m"])],
    )


def spin(steps="steps", rows=64):
    """Runs as long as it is told to: a loop of `steps` small matrix products."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["product"]),
            helper.make_node("Identity", ["go_on"], ["again"]),
            helper.make_node("Identity", ["product"], ["next"]),
        ],
        "body",
        [
            tensor("i", [], TensorProto.INT64),
            tensor("go_on", [], TensorProto.BOOL),
            tensor("state", [rows, 64]),
        ],
        [tensor("again", [], TensorProto.BOOL), tensor("next", [rows, 64])],
    )
    matrix = np.eye(64, dtype=np.float32)
    return make(
        [
            helper.make_node(
                "Constant",
                [],
                ["true"],
                value=helper.make_tensor("t", TensorProto.BOOL, [], [True]),
            ),
            helper.make_node("Loop", ["steps", "true", "x"], ["y"], body=body),
        ],
        [tensor("steps", [], TensorProto.INT64), tensor("x", [rows, 64])],
        [tensor("y", [rows, 64])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )


def sequence_insert():
    """y = the sequence x with the tensor a at its end."""
    sequence = helper.make_tensor_sequence_value_info
    return make(
        [helper.make_node("SequenceInsert", ["x", "a"], ["y"])],
        [sequence("x", TensorProto.FLOAT, None), tensor("a", [None])],
        [sequence("y", TensorProto.FLOAT, None)],
    )


def save(model, folder, name="model.onnx"):
    path = folder / name
    onnx.save(model, path)
    return str(path)
