"""KServe's first protocol, `:predict`: JSON, with instances in a list or inputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from deepsched.errors import InputError
from deepsched.server.errors import RequestError, TooLarge
from deepsched.server.inference import Inference
from deepsched.server.json_tensors import check_items, from_values, to_json
from deepsched.server.model_version import ModelVersion
from deepsched.server.rest_infer import Body
from deepsched.server.tensors import Array


class _Request(msgspec.Struct):
    instances: list[Any] | None = None
    inputs: Any = None


_decode = msgspec.json.Decoder(_Request).decode


async def predict(
    inference: Inference,
    name: str,
    version_name: str,
    body: memoryview,
    json_bytes: int | None,
    timeout: float | None,
    max_json_bytes: int,
) -> Body:
    """Answers a request: {"instances": [...]} with {"predictions": [...]}, an element for each
    instance; {"inputs": ...} with {"outputs": ...}, whole tensors. Several inputs or outputs are
    objects, by name.

    For arguments and errors see `rest_infer.infer`.
    """
    version = inference.repository.get(name, version_name)
    try:
        if body.nbytes > max_json_bytes:
            raise TooLarge(
                f"the request has {body.nbytes} bytes of JSON, at most {max_json_bytes} are taken; "
                "send tensors to /v2 as binary data"
            )
        check_items("the request", body)
        request = _parse(body)
        by_instance = request.instances is not None
        columns = (
            _columns(version, request.instances)
            if request.instances is not None
            else _by_name(version, request.inputs)
        )
        arrays = {
            column: from_values(version.input(column, ()), values)
            for column, values in columns.items()
        }
    except (RequestError, InputError):
        version.num_invalid += 1
        raise
    limits = version.limits
    outputs = await inference.run(
        version, arrays, limits.seconds({}, timeout), limits.engine_priority({})
    )
    key = "predictions" if by_instance else "outputs"
    count = len(request.instances) if request.instances is not None else None
    return Body(None, [msgspec.json.encode({key: _shown(version, outputs, count)})])


def _parse(body: memoryview) -> _Request:
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request is not of the protocol's form: {error}") from None
    if (request.instances is None) == (request.inputs is None):
        raise RequestError('expected {"instances": [...]} or {"inputs": ...}, one of the two')
    return request


def _columns(version: ModelVersion, instances: list[Any]) -> dict[str, list[Any]]:
    if not instances:
        raise RequestError("'instances' is empty")
    if not isinstance(instances[0], dict):
        return {_only_input(version): instances}
    names = instances[0].keys()
    for instance in instances:
        if not isinstance(instance, dict) or instance.keys() != names:
            raise RequestError(f"expected every instance to have the inputs {list(names)!r:.200}")
    return {name: [instance[name] for instance in instances] for name in names}


def _by_name(version: ModelVersion, inputs: Any) -> Mapping[str, Any]:
    return inputs if isinstance(inputs, dict) else {_only_input(version): inputs}


def _only_input(version: ModelVersion) -> str:
    required = [spec.name for spec in version.inputs.values() if not spec.is_optional]
    names = required or list(version.inputs)
    if len(names) != 1:
        raise RequestError(
            f"model {version.name!r} has the inputs {names}; give each instance as an object with "
            "these names"
        )
    return names[0]


def _shown(version: ModelVersion, outputs: list[Any], count: int | None) -> Any:
    arrays: dict[str, Array] = {
        spec.name: outputs[spec.position] for spec in version.outputs.values()
    }
    if count is None or len(arrays) == 1:
        shown = {name: _nested(version, name, array) for name, array in arrays.items()}
        return shown if len(shown) > 1 else next(iter(shown.values()))
    for name, array in arrays.items():
        if np.ndim(array) < 1 or array.shape[0] != count:
            raise RequestError(
                f"output {name!r} has the shape {list(array.shape)}, which is not one for each of "
                f"{count} instances; send them as 'inputs'"
            )
    return [
        {name: _nested(version, name, array[row, ...]) for name, array in arrays.items()}
        for row in range(count)
    ]


def _nested(version: ModelVersion, name: str, array: Array) -> msgspec.Raw:
    return to_json(version.outputs[name], array, is_nested=True)
