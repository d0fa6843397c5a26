"""config.pbtxt, Triton's description of a model: the fields that make sense on CPU cores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format, text_format

from deepsched.errors import OptionError, UnsupportedModelError
from deepsched.server.grpc_messages import message_class
from deepsched.server.repository.model_options import (
    ENGINE_OPTIONS,
    DeclaredTensor,
    ModelOptions,
    VersionPolicy,
    WarmUp,
    WarmUpInput,
)
from deepsched.server.repository.paths import inside
from deepsched.server.request_limits import RequestLimits

_ModelConfig = message_class("ModelConfig")

_READ = (
    *("name", "platform", "backend", "version_policy", "max_batch_size", "default_model_filename"),
    *("input.name", "input.data_type", "input.dims", "input.optional"),
    *("output.name", "output.data_type", "output.dims", "output.label_filename"),
    *("instance_group.name", "instance_group.kind", "instance_group.count"),
    *("dynamic_batching.priority_levels", "dynamic_batching.default_priority_level"),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    "dynamic_batching.default_queue_policy.timeout_action",
    *("model_warmup", "model_operations.op_library_filename"),
)
"""Fields that count; a field of these has all its own with it."""

_NEEDED = {
    "sequence_batching": "requests of one sequence would have to meet one instance",
    "ensemble_scheduling": "it is no model but a chain of models",
}
"""Fields without which a model gives other answers, and why they cannot be left out."""

_PLATFORMS = ("", "onnxruntime_onnx")
_BACKENDS = ("", "onnxruntime")


def read_text(text: str, where: str, name: str, folder: str) -> tuple[ModelOptions, str | None]:
    """The options that the text of a config.pbtxt says, and the name of each version's file if it
    says that.

    Args:
        where: its path, for messages.
        name: the model's, which the file may repeat.
        folder: the model's, in which the files are that it names.

    Raises:
        OptionError: it cannot be parsed, or a value is not possible; names the line or the field.
        UnsupportedModelError: it asks for what is not served here.
    """
    config = _ModelConfig()
    try:
        text_format.Parse(text, config)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise OptionError(f"{where}: {error}") from None
    file_name = config.default_model_filename or None
    if file_name is not None and os.path.basename(file_name) != file_name:
        raise OptionError(f"{where}: default_model_filename must be a name, got {file_name!r}")
    return _read(config, where, name, folder), file_name


def read_json(text: Any, name: str) -> ModelOptions:
    """The same for the JSON that a request to load a model may bring.

    It may name no file, and so no code.
    """
    where = "parameter 'config'"
    config = _ModelConfig()
    try:
        if not isinstance(text, str) or not text.lstrip().startswith("{"):
            raise TypeError(f"it is no object: {text!r:.40}")
        json_format.Parse(text, config)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{where}: expected a configuration as JSON: {error}") from None
    files = [it.label_filename for it in config.output]
    files += [
        it.input_data_file for warm_up in config.model_warmup for it in warm_up.inputs.values()
    ]
    files += config.model_operations.op_library_filename
    if os.path.basename(config.default_model_filename) != config.default_model_filename:
        files.append(config.default_model_filename)
    if named := list(filter(None, files)):
        raise OptionError(f"{where}: no request may name files, got {named!r:.80}")
    return _read(config, where, name, "")


def _read(config: Any, where: str, name: str, folder: str) -> ModelOptions:
    if config.name not in ("", name):
        raise OptionError(
            f"{where}: name is {config.name!r}, but the folder is {name!r}; they must be the same"
        )
    if config.platform not in _PLATFORMS or config.backend not in _BACKENDS:
        raise UnsupportedModelError(
            f"{where}: this server runs ONNX models (backend: 'onnxruntime'), not "
            f"{config.backend or config.platform!r}"
        )
    for field, why in _NEEDED.items():
        if config.HasField(field):
            raise UnsupportedModelError(f"{where}: {field} is not served here: {why}")
    if config.model_transaction_policy.decoupled:
        raise UnsupportedModelError(
            f"{where}: an ONNX model gives one answer to a request, so it cannot be decoupled"
        )
    if config.max_batch_size < 0:
        raise OptionError(
            f"{where}: max_batch_size must be at least 0, got {config.max_batch_size}"
        )
    engine, unread_parameters = _engine_options(config)
    unread = [*_unread(config), *(f"parameters[{key!r}]" for key in unread_parameters)]
    files = []
    for library in config.model_operations.op_library_filename:
        engine["custom_ops"] = (
            *engine.get("custom_ops", ()),
            inside(folder, os.path.join(folder, library)),
        )
    files.extend(engine.get("custom_ops", ()))
    labels = {}
    for output in config.output:
        if output.label_filename:
            path = inside(folder, os.path.join(folder, output.label_filename))
            labels[output.name] = _lines(path, where)
            files.append(path)
    warm_ups = tuple(_warm_up(it, config, where, folder) for it in config.model_warmup)
    files.extend(
        tensor.source
        for warm_up in warm_ups
        for tensor in warm_up.inputs
        if os.path.isabs(tensor.source)
    )
    return ModelOptions(
        engine=engine,
        version_policy=_version_policy(config, where),
        max_batch_size=config.max_batch_size,
        limits=_limits(config.dynamic_batching),
        inputs=_declared(config.input, config.max_batch_size),
        outputs=_declared(config.output, config.max_batch_size),
        labels=labels,
        warm_ups=warm_ups,
        num_instances=_num_instances(config),
        unread=tuple(unread),
        files=tuple(files),
    )


def _lines(path: str, where: str) -> tuple[str, ...]:
    if not os.path.isfile(path):  # a pipe would keep us waiting
        raise OptionError(f"{where}: the labels in {path} cannot be read: it is no regular file")
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return tuple(line.rstrip("\n") for line in lines)
    except OSError as error:
        raise OptionError(f"{where}: the labels in {path} cannot be read: {error}") from None


def _limits(batching: Any) -> RequestLimits:
    queue = batching.default_queue_policy
    # With the action DELAY, requests that are late go on behind all others.
    is_limit = queue.default_timeout_microseconds > 0 and queue.timeout_action == _REJECT
    levels = batching.priority_levels
    priorities = (levels, batching.default_priority_level or levels) if levels else ()
    return RequestLimits(
        queue.default_timeout_microseconds / 1e6 if is_limit else None,
        queue.allow_timeout_override or not is_limit,
        *priorities,
    )


_REJECT = 0


def _version_policy(config: Any, where: str) -> VersionPolicy:
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=None)
    if choice == "specific":
        versions = config.version_policy.specific.versions
        return VersionPolicy(specific=tuple(map(str, versions)))
    if choice == "latest":
        latest = config.version_policy.latest.num_versions
        if not latest:
            raise OptionError(f"{where}: version_policy: num_versions must be at least 1")
        return VersionPolicy(latest=latest)
    return VersionPolicy()


def _num_instances(config: Any) -> int | None:
    kinds = config.DESCRIPTOR.fields_by_name["instance_group"].message_type.enum_types_by_name
    cpu = kinds["Kind"].values_by_name["KIND_CPU"].number
    counts = [group.count or 1 for group in config.instance_group if group.kind == cpu]
    return sum(counts) or None


def _declared(tensors: Any, max_batch_size: int) -> tuple[DeclaredTensor, ...]:
    batch = (-1,) if max_batch_size else ()
    return tuple(
        DeclaredTensor(
            tensor.name,
            _datatype(tensor),
            None if tensor.HasField("reshape") or not tensor.dims else (*batch, *tensor.dims),
        )
        for tensor in tensors
    )


def _datatype(tensor: Any) -> str:
    """The protocol's name of a type: TYPE_FP32 is FP32; BYTES is TYPE_STRING here."""
    enum = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
    found = enum.values_by_number.get(tensor.data_type)
    if found is None:
        raise OptionError(f"data_type {tensor.data_type} is none of the protocol's")
    name = found.name.removeprefix("TYPE_")
    return {"INVALID": "", "STRING": "BYTES"}.get(name, str(name))


def _warm_up(warm_up: Any, config: Any, where: str, folder: str) -> WarmUp:
    batch = (warm_up.batch_size,) if config.max_batch_size and warm_up.batch_size else ()
    inputs = []
    for name, value in sorted(warm_up.inputs.items()):
        kind = value.WhichOneof("input_data_type")
        if kind is None:
            raise OptionError(
                f"{where}: model_warmup {warm_up.name!r}: input {name!r} must have zero_data, "
                "random_data or input_data_file"
            )
        if kind == "input_data_file":
            source = inside(folder, os.path.join(folder, "warmup", value.input_data_file))
            source = os.path.abspath(source)
        else:
            source = kind.removesuffix("_data")
        inputs.append(WarmUpInput(name, _datatype(value), (*batch, *value.dims), source))
    return WarmUp(warm_up.name, tuple(inputs), max(1, warm_up.count))


def _engine_options(config: Any) -> tuple[dict[str, Any], list[str]]:
    """Parameters whose keys are options of Engine, with values in JSON or as they are; and the
    other keys. Options that are paths are among these: a request may bring a configuration."""
    options: dict[str, Any] = {}
    unread = []
    for key, parameter in sorted(config.parameters.items()):
        if key not in ENGINE_OPTIONS or key in _PATHS:
            unread.append(key)
            continue
        try:
            options[key] = json.loads(parameter.string_value)
        except (ValueError, RecursionError):
            options[key] = parameter.string_value
    return options, unread


_PATHS = ("cache_dir", "custom_ops")


def _unread(message: Any, prefix: str = "") -> Iterator[str]:
    """The fields that are set and that nothing here reads."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if path in _READ or path == "parameters":
            continue
        if not any(read.startswith(f"{path}.") for read in _READ):
            yield path
            continue
        for part in value if field.is_repeated else [value]:
            yield from _unread(part, f"{path}.")
