"""An inference in gRPC's form, to arrays; and back.

Raw tensors do not pass through protobuf, which would copy them twice: on the wire they are pieces
of the message with a tag and a length before each, and here views of them, or a list to be joined.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from deepsched.errors import InputError
from deepsched.server.classification import classify
from deepsched.server.errors import RequestError, TooLarge
from deepsched.server.forms import (
    MOST_BYTES,
    Form,
    Given,
    Wanted,
    arrays_of,
    check_outputs,
    make_form,
    remember,
)
from deepsched.server.grpc_messages import message_class
from deepsched.server.inference import Inference
from deepsched.server.model_version import ModelVersion
from deepsched.server.tensors import (
    Array,
    TensorSpec,
    check_count,
    check_declared,
    to_raw,
)

_Request = message_class("ModelInferRequest")
_Response = message_class("ModelInferResponse")
_parse = _Request.FromString
_parse_again = lru_cache(256)(_parse)

# Tags: field number << 3 | 2, where 2 stands for what has a length.
_RAW_INPUT = 7 << 3 | 2
_RAW_OUTPUT = bytes([6 << 3 | 2])

# Of what a length needs; protobuf takes 70.
_MOST_BITS = 63

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


class Request(NamedTuple):
    """A ModelInferRequest, as `parse` finds it."""

    message: Any
    """Without its raw tensors. Requests that are the same share it."""
    raw: list[memoryview]
    text: bytes
    """What `message` was read from; empty where it is long."""


def parse(message: bytes, max_bytes: int) -> Request:
    """Reads a request.

    Raises:
        RequestError: it is none.
        TooLarge: without its raw tensors it has more than `max_bytes`.
    """
    rest, raw, is_all = _split(message)
    if len(rest) > max_bytes:
        raise TooLarge(
            f"the request has {len(rest)} bytes beside its raw_input_contents, at most "
            f"{max_bytes} are taken; send tensors as these"
        )
    try:
        if not raw or len(rest) > MOST_BYTES:
            found, rest = _parse(rest), b""
        else:
            found = _parse_again(rest)
    except DecodeError as error:
        raise RequestError(f"not a ModelInferRequest: {error}") from None
    if not is_all:
        raw += map(memoryview, found.raw_input_contents)
        rest = b""
    return Request(found, raw, rest)


def _split(message: bytes) -> tuple[bytes, list[memoryview], bool]:
    """The fields of a message but `raw_input_contents`, those as views, and whether these are all.

    From a field on that is none of the protocol's, protobuf is to read the rest: it knows how to
    skip these, and says what is wrong with others.
    """
    view = memoryview(message)
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    at, end, kept_from = 0, len(message), 0
    while at < end - 1:
        start = at
        tag = message[at]
        if tag & 0x87 != 2:  # all of ours have one byte of tag, and a length
            break
        length = message[at + 1]
        at += 2
        if length > 0x7F:
            length &= 0x7F
            for shift in range(7, _MOST_BITS, 7):
                byte = message[at] if at < end else 0xFF
                at += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
            else:
                break
        if length > end - at:
            break
        if tag == _RAW_INPUT:
            kept.append(view[kept_from:start])
            raw.append(view[at : at + length])
            kept_from = at + length
        at += length
    kept.append(view[kept_from:])
    return b"".join(kept), raw, at == end


def parameters_of(message: Any) -> dict[str, Any]:
    """The `parameters` of a message, as Python's values."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in message.parameters.items()
    }


async def answer(inference: Inference, request: Request, limit: float | None) -> list[Any]:
    """Answers a request with the pieces of a ModelInferResponse, to be joined.

    Args:
        limit: seconds that the call has left; None: no limit.

    Raises:
        DeepschedError: any error of `Inference.run`, and RequestError for a wrong form.
    """
    message = request.message
    version = inference.repository.get(message.model_name, message.model_version)
    try:
        form = _read(version, request)
        inputs = arrays_of(form, request.raw, inference.regions, _from_contents)
    except (RequestError, InputError):
        version.num_invalid += 1
        raise
    outputs = await inference.run(version, inputs, form.seconds(limit), form.priority)
    arrays = form.arrays(outputs)
    if not form.is_plain:
        return _described(inference, version, request, form, arrays)
    shapes = tuple([array.shape for array in arrays])
    known = form.heads.get(shapes)
    if known is None:
        pieces = _described(inference, version, request, form, arrays)
        remember(form.heads, shapes, (pieces[0], pieces[1::2]))
        return pieces
    head, tags = known
    pieces = [head]
    for tag, array in zip(tags, arrays, strict=True):
        pieces += (tag, to_raw(array))
    return pieces


def _read(version: ModelVersion, request: Request) -> Form:
    key = request.text, len(request.raw)
    known: Form | None = version.forms.get(key)
    if known is not None:
        return known
    message = request.message
    inputs = _given(version, message, len(request.raw))
    check_outputs(version, len(message.outputs))
    wanted = [
        Wanted(version.output(output.name), parameters_of(output), True)
        for output in message.outputs
    ] or [Wanted(spec, {}, True) for spec in version.outputs.values()]
    parameters = parameters_of(message)
    form = make_form(version, message.id, parameters, inputs, wanted, len(request.raw))
    if request.text and form.is_plain:
        remember(version.forms, key, form)
    return form


def _given(version: ModelVersion, message: Any, num_raw: int) -> list[Given]:
    inputs: dict[str, Given] = {}
    num_found = 0
    for given in message.inputs:
        spec = version.input(given.name, inputs)
        shape = list(given.shape)
        count = check_declared(spec, given.datatype, shape)
        parameters = parameters_of(given)
        raw = None
        if "shared_memory_region" not in parameters and num_raw:
            if given.HasField("contents"):
                raise InputError(
                    f"input {spec.name!r}: it has 'contents', and the request raw_input_contents; "
                    "give all inputs one way"
                )
            raw = num_found
            num_found += 1
        contents = given.contents if raw is None else None
        inputs[given.name] = Given(spec, shape, count, raw, parameters, contents)
    if num_found != num_raw:
        raise RequestError(
            f"raw_input_contents has {num_raw} elements; expected one for each input that is not "
            "in shared memory"
        )
    return list(inputs.values())


def _described(
    inference: Inference, version: ModelVersion, request: Request, form: Form, arrays: list[Array]
) -> list[Any]:
    response = _Response(model_name=version.name, model_version=version.version, id=form.request_id)
    parameters = request.message.parameters
    if (
        "triton_enable_empty_final_response" in parameters
        and parameters["triton_enable_empty_final_response"].bool_param
    ):
        response.parameters["triton_final_response"].bool_param = True
    pieces: list[Any] = []
    for (spec, asked, _), array in zip(form.wanted, arrays, strict=True):
        datatype = spec.datatype
        if "classification" in asked:
            labels = version.labels.get(spec.name, ())
            is_batch = version.max_batch_size > 0
            array = classify(spec, array, asked["classification"], is_batch, labels)
            datatype = "BYTES"
        output = response.outputs.add(name=spec.name, datatype=datatype, shape=array.shape)
        if "shared_memory_region" not in asked:
            data = to_raw(array)
            pieces += (_RAW_OUTPUT + _varint(len(data)), data)
            continue
        pieces += (_RAW_OUTPUT + _varint(0), b"")  # clients count raw contents by output
        for name, value in inference.regions.write(spec.name, asked, to_raw(array)).items():
            if isinstance(value, str):
                output.parameters[name].string_param = value
            else:
                output.parameters[name].int64_param = value
    return [response.SerializeToString(), *pieces]


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
