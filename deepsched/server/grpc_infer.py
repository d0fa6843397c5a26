"""An inference in gRPC's form, to arrays; and back.

Large tensors do not pass through protobuf, which would copy them twice: on the wire they are pieces
of the message with a tag and a length before each, and here views of them, or a list to be joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from deepsched.errors import InputError
from deepsched.server.classification import classify
from deepsched.server.errors import RequestError, TooLarge
from deepsched.server.grpc_messages import message_class
from deepsched.server.inference import Inference
from deepsched.server.model_version import ModelVersion
from deepsched.server.rest_infer import check_outputs
from deepsched.server.tensors import (
    Array,
    TensorSpec,
    check_count,
    check_declared,
    from_raw,
    to_raw,
)

_Request = message_class("ModelInferRequest")
_Response = message_class("ModelInferResponse")
_parse_request = _Request.FromString

# Below this, protobuf's copies cost less than looking for the tensors in Python.
_LONG = 16384

# Tags: field number << 3 | 2, where 2 stands for what has a length.
_RAW_INPUT = 7 << 3 | 2
_RAW_OUTPUT = bytes([6 << 3 | 2])

# A length has 10 bytes at most; one without an end would be built bit by bit for minutes.
_MOST_SHIFT = 63

_INFER_RESPONSE = bytes([2 << 3 | 2])

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse(message: bytes, max_bytes: int) -> tuple[Any, list[memoryview]]:
    """A ModelInferRequest without its raw tensors, and these.

    Raises:
        RequestError: it is none.
        TooLarge: without them it has more than `max_bytes`.
    """
    try:
        if len(message) >= _LONG:
            rest, raw = _split(message)
            if len(rest) > max_bytes:
                raise TooLarge(
                    f"the request has {len(rest)} bytes beside its raw_input_contents, at most "
                    f"{max_bytes} are taken; send tensors as these"
                )
            return _parse_request(rest), raw
        request = _parse_request(message)
    except (DecodeError, IndexError) as error:
        raise RequestError(f"not a ModelInferRequest: {error}") from None
    return request, [memoryview(data) for data in request.raw_input_contents]


def _split(message: bytes) -> tuple[bytes, list[memoryview]]:
    """The fields of a message but `raw_input_contents`, and those as views."""
    view = memoryview(message)
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    at, end, kept_from = 0, len(message), 0
    while at < end:
        start = at
        tag = message[at]
        if tag & 0x87 != 2:  # no field of ours: all have one byte of tag, and a length
            raise DecodeError(f"an unknown field at byte {at}")
        at += 1
        length = shift = 0
        while True:
            byte = message[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > _MOST_SHIFT:
                raise DecodeError(f"the length of the field at byte {start} does not end")
        if length > end - at:
            raise DecodeError(f"a field at byte {start} is longer than the message")
        if tag == _RAW_INPUT:
            kept.append(view[kept_from:start])
            raw.append(view[at : at + length])
            kept_from = at + length
        at += length
    kept.append(view[kept_from:])
    return b"".join(kept), raw


def parameters_of(message: Any) -> dict[str, Any]:
    """The `parameters` of a message, as Python's values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in message.parameters.items()
    }


async def answer(
    inference: Inference, request: Any, raw: list[memoryview], limit: float | None
) -> list[Any]:
    """Answers a ModelInferRequest with the pieces of a ModelInferResponse, to be joined.

    Args:
        request, raw: see `parse`.
        limit: seconds that the call has left; None: no limit.

    Raises:
        DeepschedError: any error of `Inference.run`, and RequestError for a wrong form.
    """
    version = inference.repository.get(request.model_name, request.model_version)
    try:
        parameters = parameters_of(request)
        inputs = _inputs(inference, version, request, raw)
        check_outputs(version, len(request.outputs))
        wanted = [
            (version.output(output.name), parameters_of(output)) for output in request.outputs
        ]
        timeout = version.limits.seconds(parameters, limit)
        priority = version.limits.engine_priority(parameters)
    except (RequestError, InputError):
        version.num_invalid += 1
        raise
    outputs = await inference.run(version, inputs, timeout, priority)
    response = _Response(model_name=version.name, model_version=version.version, id=request.id)
    if parameters.get("triton_enable_empty_final_response") is True:
        response.parameters["triton_final_response"].bool_param = True
    pieces: list[Any] = []
    if not wanted:
        wanted = [(spec, {}) for spec in version.outputs.values()]
    for spec, asked in wanted:
        _add(inference, version, response, pieces, spec, asked, outputs[spec.position])
    return [response.SerializeToString(), *pieces]


def _add(
    inference: Inference,
    version: ModelVersion,
    response: Any,
    pieces: list[Any],
    spec: TensorSpec,
    asked: Mapping[str, Any],
    array: Array,
) -> None:
    datatype = spec.datatype
    if "classification" in asked:
        labels = version.labels.get(spec.name, ())
        array = classify(spec, array, asked["classification"], version.max_batch_size > 0, labels)
        datatype = "BYTES"
    output = response.outputs.add(name=spec.name, datatype=datatype, shape=array.shape)
    data = to_raw(array)
    if "shared_memory_region" not in asked:
        pieces += (_RAW_OUTPUT, _varint(len(data)), data)
        return
    pieces += (_RAW_OUTPUT, b"\0")  # nothing; clients count raw contents by output
    for name, value in inference.regions.write(spec.name, asked, data).items():
        if isinstance(value, str):
            output.parameters[name].string_param = value
        else:
            output.parameters[name].int64_param = value


def streamed(pieces: list[Any]) -> bytes:
    """The pieces of a ModelInferResponse, as a ModelStreamInferResponse."""
    return b"".join([_INFER_RESPONSE, _varint(sum(map(len, pieces))), *pieces])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _inputs(
    inference: Inference, version: ModelVersion, request: Any, raw: list[memoryview]
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    num_raw = 0
    for given in request.inputs:
        spec = version.input(given.name, arrays)
        shape = list(given.shape)
        count = check_declared(spec, given.datatype, shape)
        if given.parameters and "shared_memory_region" in given.parameters:
            view = inference.regions.view(f"input {spec.name!r}", parameters_of(given))
            arrays[given.name] = from_raw(spec, shape, count, view)
        elif raw:
            if given.HasField("contents"):
                raise InputError(
                    f"input {spec.name!r}: it has 'contents', and the request raw_input_contents; "
                    "give all inputs one way"
                )
            if num_raw < len(raw):
                arrays[given.name] = from_raw(spec, shape, count, raw[num_raw])
            num_raw += 1
        else:
            arrays[given.name] = _from_contents(spec, shape, count, given.contents)
    if num_raw != len(raw):
        raise RequestError(
            f"raw_input_contents has {len(raw)} elements; expected one for each input that is not "
            "in shared memory"
        )
    return arrays


def _from_contents(spec: TensorSpec, shape: list[int], count: int, contents: Any) -> Array:
    field = _CONTENTS.get(spec.datatype)
    if field is None:
        raise InputError(
            f"input {spec.name!r}: {spec.datatype} has no 'contents'; send raw_input_contents"
        )
    values = getattr(contents, field)
    if len(values) != count:
        raise InputError(
            f"input {spec.name!r}: expected {count} elements in {field} for shape {shape}, got "
            f"{len(values)}"
        )
    check_count(spec, count)
    if spec.datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = list(values)
        return array.reshape(shape)
    if spec.dtype.kind in "iu" and count:
        limits = np.iinfo(spec.dtype)
        for wrong in (min(values), max(values)):
            if not limits.min <= wrong <= limits.max:
                raise InputError(f"input {spec.name!r}: expected {spec.datatype}, got {wrong}")
    return np.array(values, spec.dtype).reshape(shape)
