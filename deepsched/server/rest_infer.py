"""An inference in REST's form, JSON and its binary extension, to arrays; and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

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
from deepsched.server.inference import Inference
from deepsched.server.json_tensors import from_json, to_json
from deepsched.server.model_version import ModelVersion
from deepsched.server.tensors import TensorSpec, check_declared, to_raw

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
        text, binary = _split(body, json_bytes, max_json_bytes)
        form = _read(version, text)
        if form.num_raw != binary.nbytes:
            raise _wrong_length(form, binary.nbytes)
        inputs = arrays_of(form, binary, inference.regions, from_json)
    except (RequestError, InputError):
        version.num_invalid += 1
        raise
    outputs = await inference.run(version, inputs, form.seconds(timeout), form.priority)
    return _answer(inference, version, form, outputs)


def _split(
    body: memoryview, json_bytes: int | None, max_json_bytes: int
) -> tuple[memoryview, memoryview]:
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
    return body[:json_bytes], body[json_bytes:]


# --- What is asked for ----------------------------------------------------------------------


def _read(version: ModelVersion, text: memoryview) -> Form:
    key = text.tobytes() if text.nbytes <= MOST_BYTES else b""
    known: Form | None = version.forms.get(key)
    if known is not None:
        return known
    try:
        request = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not of the protocol's form: {error}") from None
    inputs, num_raw = _given(version, request)
    wanted = _wanted(version, request)
    form = make_form(version, request.id or "", request.parameters, inputs, wanted, num_raw)
    if key and form.is_plain:
        remember(version.forms, key, form)
    return form


def _given(version: ModelVersion, request: _Request) -> tuple[list[Given], int]:
    """The inputs, and how many bytes behind the JSON are theirs."""
    inputs: dict[str, Given] = {}
    at = 0
    for given in request.inputs:
        spec = version.input(given.name, inputs)
        count = check_declared(spec, given.datatype, given.shape)
        raw = None
        size = given.parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or size < 0:
                raise InputError(
                    f"input {spec.name!r}: expected 'binary_data_size' to be a number of bytes, "
                    f"got {size!r:.40}"
                )
            _check_no_data(spec, given, "binary_data_size")
            raw = slice(at, at + size)
            at += size
        elif "shared_memory_region" in given.parameters:
            _check_no_data(spec, given, "shared_memory_region")
        elif given.data is _ABSENT:
            raise InputError(f"input {spec.name!r}: it has neither 'data' nor binary data")
        inputs[given.name] = Given(spec, given.shape, count, raw, given.parameters, given.data)
    return list(inputs.values()), at


def _check_no_data(spec: TensorSpec, given: _Input, parameter: str) -> None:
    if given.data is not _ABSENT:
        raise InputError(f"input {spec.name!r}: it has both 'data' and {parameter!r}")


def _wanted(version: ModelVersion, request: _Request) -> list[Wanted]:
    all_binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [Wanted(spec, {}, all_binary) for spec in version.outputs.values()]
    check_outputs(version, len(request.outputs))
    wanted = []
    for asked in request.outputs:
        spec = version.output(asked.name)
        is_binary = asked.parameters.get("binary_data", all_binary)
        wanted.append(Wanted(spec, asked.parameters, is_binary is True))
    return wanted


# --- Tensors --------------------------------------------------------------------------------


def _wrong_length(form: Form, num_bytes: int) -> RequestError | InputError:
    for spec, _, _, raw, _, _ in form.inputs:
        if raw is not None and raw.stop > num_bytes:
            return InputError(
                f"input {spec.name!r}: 'binary_data_size' is {raw.stop - raw.start}, but "
                f"{max(0, num_bytes - raw.start)} bytes are left of the body"
            )
    return RequestError(
        f"{num_bytes - form.num_raw} bytes behind the JSON are no input's 'binary_data_size'"
    )


def _answer(inference: Inference, version: ModelVersion, form: Form, outputs: list[Any]) -> Body:
    if not form.is_plain:
        return _described(inference, version, form, outputs)
    arrays = form.arrays(outputs)
    shapes = tuple([array.shape for array in arrays])
    head = form.heads.get(shapes)
    if head is None:
        head = _described(inference, version, form, outputs).parts[0]
        remember(form.heads, shapes, head)
    return Body(len(head), [head, *map(to_raw, arrays)], form.request_id)


def _described(inference: Inference, version: ModelVersion, form: Form, outputs: list[Any]) -> Body:
    described: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for spec, parameters, is_binary in form.wanted:
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
    if form.request_id:
        answer["id"] = form.request_id
    answer["outputs"] = described
    text = _encode(answer)
    return Body(len(text) if raw else None, [text, *raw], form.request_id)
