"""An inference in REST's form, JSON and its binary extension, to arrays; and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from deepsched.errors import InputError
from deepsched.server.classification import classify
from deepsched.server.errors import RequestError, TooLarge
from deepsched.server.inference import Inference
from deepsched.server.json_tensors import from_json, to_json
from deepsched.server.model_version import ModelVersion
from deepsched.server.tensors import Array, TensorSpec, check_declared, from_raw, to_raw

_ABSENT = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = _ABSENT


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


class Body(NamedTuple):
    """A request's or an answer's: JSON, and behind it raw tensors."""

    json_bytes: int | None
    """Of its JSON; None: all of it."""
    parts: list[bytes | memoryview]
    request_id: str = ""


async def infer(
    inference: Inference,
    name: str,
    version_name: str,
    body: memoryview,
    json_bytes: int | None,
    timeout: float | None,
    max_json_bytes: int,
) -> Body:
    """Answers a request.

    Args:
        name, version_name: of the model.
        body: all of it, decompressed.
        json_bytes: how many of its bytes are JSON; None: all.
        timeout: what limits it from outside, in seconds.

    Raises:
        DeepschedError: any error of `Inference.run`, and RequestError for a wrong form.
    """
    version = inference.repository.get(name, version_name)
    try:
        request, binary = _parse(body, json_bytes, max_json_bytes)
        inputs = _inputs(inference, version, request, binary)
        wanted = _wanted(version, request)
        timeout = version.limits.seconds(request.parameters, timeout)
        priority = version.limits.engine_priority(request.parameters)
    except (RequestError, InputError):
        version.num_invalid += 1
        raise
    outputs = await inference.run(version, inputs, timeout, priority)
    return _answer(inference, version, request.id or "", wanted, outputs)


def _parse(
    body: memoryview, json_bytes: int | None, max_json_bytes: int
) -> tuple[_Request, memoryview]:
    if json_bytes is None:
        json_bytes = body.nbytes
    elif json_bytes > body.nbytes:
        raise RequestError(
            f"Inference-Header-Content-Length is {json_bytes}, but the body has {body.nbytes} bytes"
        )
    if json_bytes > max_json_bytes:
        raise TooLarge(
            f"the request has {json_bytes} bytes of JSON, at most {max_json_bytes} are taken; send "
            "tensors as binary data"
        )
    try:
        return _decode(body[:json_bytes]), body[json_bytes:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not of the protocol's form: {error}") from None


def _inputs(
    inference: Inference, version: ModelVersion, request: _Request, binary: memoryview
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    at = 0
    for given in request.inputs:
        spec = version.input(given.name, arrays)
        count = check_declared(spec, given.datatype, given.shape)
        parameters = given.parameters
        size = parameters.get("binary_data_size") if parameters else None
        if size is not None:
            if type(size) is not int or not 0 <= size <= binary.nbytes - at:
                raise InputError(
                    f"input {spec.name!r}: 'binary_data_size' is {size!r:.40}, but "
                    f"{binary.nbytes - at} bytes are left of the body"
                )
            _check_no_data(spec, given, "binary_data_size")
            arrays[given.name] = from_raw(spec, given.shape, count, binary[at : at + size])
            at += size
        elif "shared_memory_region" in parameters:
            _check_no_data(spec, given, "shared_memory_region")
            view = inference.regions.view(f"input {spec.name!r}", parameters)
            arrays[given.name] = from_raw(spec, given.shape, count, view)
        elif given.data is _ABSENT:
            raise InputError(f"input {spec.name!r}: it has neither 'data' nor binary data")
        else:
            arrays[given.name] = from_json(spec, given.shape, count, given.data)
    if at != binary.nbytes:
        raise RequestError(
            f"{binary.nbytes - at} bytes behind the JSON are no input's 'binary_data_size'"
        )
    return arrays


def _check_no_data(spec: TensorSpec, given: _Input, parameter: str) -> None:
    if given.data is not _ABSENT:
        raise InputError(f"input {spec.name!r}: it has both 'data' and {parameter!r}")


def check_outputs(version: ModelVersion, count: int) -> None:
    """Raises RequestError where more outputs are asked for than there are: some would be sent again
    and again."""
    if count > len(version.outputs):
        raise RequestError(
            f"{count} outputs are asked for, but model {version.name!r} has {len(version.outputs)}"
        )


class _Wanted(NamedTuple):
    spec: TensorSpec
    parameters: dict[str, Any]
    is_binary: bool


def _wanted(version: ModelVersion, request: _Request) -> list[_Wanted]:
    all_binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [_Wanted(spec, {}, all_binary) for spec in version.outputs.values()]
    check_outputs(version, len(request.outputs))
    wanted = []
    for asked in request.outputs:
        spec = version.output(asked.name)
        is_binary = asked.parameters.get("binary_data", all_binary)
        wanted.append(_Wanted(spec, asked.parameters, is_binary is True))
    return wanted


def _answer(
    inference: Inference,
    version: ModelVersion,
    request_id: str,
    wanted: list[_Wanted],
    outputs: list[Any],
) -> Body:
    described: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for spec, parameters, is_binary in wanted:
        array, datatype = outputs[spec.position], spec.datatype
        if "classification" in parameters:
            labels = version.labels.get(spec.name, ())
            is_batch = version.max_batch_size > 0
            array = classify(spec, array, parameters["classification"], is_batch, labels)
            datatype = "BYTES"
        output: dict[str, Any] = {
            "name": spec.name,
            "datatype": datatype,
            "shape": array.shape,
        }
        if "shared_memory_region" in parameters:
            # Its parameters are not repeated: Triton's C++ client takes any for those of raw bytes.
            inference.regions.write(spec.name, parameters, to_raw(array))
        elif is_binary:
            data = to_raw(array)
            output["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            output["data"] = to_json(spec, array)
        described.append(output)
    answer: dict[str, Any] = {"model_name": version.name, "model_version": version.version}
    if request_id:
        answer["id"] = request_id
    answer["outputs"] = described
    text = _encode(answer)
    return Body(len(text) if raw else None, [text, *raw], request_id)
