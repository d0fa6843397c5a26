"""Models to begin with, and their mutations: as ModelProto, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from fuzz.messages import mutated
from tests.support import models
from tests.support.rewrite_patterns import EXAMPLES, inside_if


def seeds() -> Iterator[bytes]:
    """Of each kind that is read in a way of its own: what rules rewrite, subgraphs, sequences,
    optionals, old versions, functions, sparse tensors, external data, large weights."""
    patterns = [example()[0] for example in EXAMPLES]
    made = [pattern.model() for pattern in patterns]
    made += [inside_if(patterns[0]), models.mlp(8), models.add_two_inputs(), models.gather()]
    made += [models.sequence_insert(), models.spin(), models.gram()]
    made += [models.gemm(size=64, ir_version=3, also_inputs=("w", "b")), models.gemm(size=70)]
    made += [_conv(), _external(), _optional(), _sparse(), _function()]
    for model in made:
        yield model.SerializeToString()


def mutate(data: bytes, random: Random) -> bytes:
    """A model like this one; what is none stays as it is."""
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        return data
    return bytes(mutated(model, random).SerializeToString())


def _conv() -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        helper.make_node("MaxPool", ["h"], ["y"], kernel_shape=[2, 2]),
    ]
    given = [models.tensor("x", ["n", 3, 9, 9])]
    return models.make(nodes, given, [models.tensor("y", None)], weights)


def _external() -> onnx.ModelProto:
    """Its weights are in `weights.bin`, 16 bytes from its byte 0."""
    model = models.make(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [models.tensor("x", [4])],
        [models.tensor("y", [4])],
        [TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])],
    )
    weights = model.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    return model


def _optional() -> onnx.ModelProto:
    given = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    value = helper.make_value_info("x", helper.make_optional_type_proto(given))
    nodes = [helper.make_node("OptionalHasElement", ["x"], ["y"])]
    return models.make(nodes, [value], [models.tensor("y", [], TensorProto.BOOL)], opset=18)


def _sparse() -> onnx.ModelProto:
    model = models.make(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [models.tensor("x", [4])],
        [models.tensor("y", [4])],
        ir_version=9,
    )
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("", TensorProto.INT64, [1], [3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model


def _function() -> onnx.ModelProto:
    model = models.make(
        [helper.make_node("Twice", ["x"], ["y"], domain="own")],
        [models.tensor("x", ["batch", 4])],
        [models.tensor("y", ["batch", 4])],
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, opsets))
    return model
