"""Messages of gRPC's ModelInfer: refused as a client's error is, or answered by a message of the
protocol. Large tensors, which do not pass through protobuf, are found as protobuf finds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from deepsched.errors import DeepschedError
from deepsched.server import grpc_infer
from deepsched.server.grpc_messages import message_class
from fuzz.messages import mutated
from fuzz.served import MODELS, TYPES, answered, inference
from fuzz.target import Target

_Request = message_class("ModelInferRequest")
_Response = message_class("ModelInferResponse")


def check(data: bytes) -> None:
    _check_split(data)
    try:
        request = grpc_infer.parse(data, 4096)
    except DeepschedError:
        return
    pieces = answered(grpc_infer.answer(inference(), request, None))
    if pieces is not None:
        response = _Response.FromString(b"".join(pieces))
        assert response.model_name == request.message.model_name
        assert len(response.raw_output_contents) == len(response.outputs)


def _check_split(data: bytes) -> None:
    rest, raw, is_all = grpc_infer._split(data)
    found, whole = _parsed(rest), _parsed(data)
    assert (found is None) == (whole is None)
    if found is None or whole is None:
        return
    assert not (is_all and found.raw_input_contents)
    assert [*map(bytes, raw), *found.raw_input_contents] == list(whole.raw_input_contents)
    for each in (found, whole):
        each.ClearField("raw_input_contents")
    assert found.SerializeToString(deterministic=True) == whole.SerializeToString(
        deterministic=True
    )


def _parsed(data: bytes) -> Any:
    with suppress(DecodeError):
        return _Request.FromString(data)
    return None


def _mutate(data: bytes, random: Random) -> bytes:
    try:
        request = _Request.FromString(data)
    except DecodeError:
        return data
    return bytes(mutated(request, random).SerializeToString())


def _seeds() -> Iterator[bytes]:
    for model in MODELS:
        request = _Request(model_name=model, id="7")
        given = [("a", "FP32", [1, 4]), ("b", "INT64", [1])]
        for name, datatype, shape in given if model == "two" else [("x", model, [2])]:
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            size = 16 if datatype == "FP32" else 8
            request.raw_input_contents.append(bytes(size))
        request.parameters["timeout"].int64_param = 10**6
        output = request.outputs.add(name="y")
        output.parameters["classification"].int64_param = 1
        yield request.SerializeToString()
        if model not in grpc_infer._CONTENTS or model not in TYPES:
            continue
        request = _Request(model_name=model)
        given = request.inputs.add(name="x", datatype=model, shape=[1])
        value = b"a" if model == "BYTES" else 1
        getattr(given.contents, grpc_infer._CONTENTS[model]).append(value)
        yield request.SerializeToString()
    large = _Request(model_name="FP32", raw_input_contents=[np.zeros(4500, "f4").tobytes()])
    large.inputs.add(name="x", datatype="FP32", shape=[4500])
    yield large.SerializeToString()


TARGET = Target(check, _seeds, _mutate, tuple(it.encode() for it in MODELS), max_bytes=20_000)
