"""config.pbtxt, and the JSON that a request to load a model may bring: options, or an error that
says what is wrong. No file is named that is not in the model's folder; by a request, none at all.

The first byte chooses: even is a file's text, odd is JSON.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

from google.protobuf import json_format, text_format

from deepsched.errors import ModelError, OptionError
from deepsched.server.grpc_messages import message_class
from deepsched.server.repository import pbtxt
from deepsched.server.repository.model_options import ModelOptions
from fuzz.folders import folder
from fuzz.messages import mutated
from fuzz.target import Target

_Config = message_class("ModelConfig")


def check(data: bytes) -> None:
    text = data[1:].decode("utf-8", "replace")
    is_json = bool(data) and data[0] % 2 == 1
    try:
        if is_json:
            options = pbtxt.read_json(text, "model")
            assert not options.files, options.files
        else:
            options, name = pbtxt.read_text(text, "config.pbtxt", "model", str(_folder()))
            assert name is None or os.path.basename(name) == name
            _check_inside(options)
    except (OptionError, ModelError) as error:
        assert str(error)


def _check_inside(options: ModelOptions) -> None:
    for path in options.files:
        assert os.path.realpath(path).startswith(f"{os.path.realpath(_folder())}/"), path


def _folder() -> os.PathLike[str]:
    path = folder("config")
    if not (path / "labels.txt").exists():
        (path / "1").mkdir()
        (path / "warmup").mkdir()
        (path / "warmup" / "raw").write_bytes(bytes(8))
        (path / "out").symlink_to("/etc/hostname")
        (path / "labels.txt").write_text("cat\ndog\n")
    return path


def _mutate(data: bytes, random: Random) -> bytes:
    is_json = bool(data) and data[0] % 2 == 1
    config = _Config()
    try:
        parse = json_format.Parse if is_json else text_format.Parse
        parse(data[1:].decode("utf-8", "replace"), config)
    except Exception:  # of whatever kind: `check` is what looks at errors
        return data
    write = json_format.MessageToJson if is_json else text_format.MessageToString
    return data[:1] + str(write(mutated(config, random))).encode("utf-8", "replace")


_TEXT = """
name: "model" backend: "onnxruntime" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] optional: true }
output { name: "y" data_type: TYPE_STRING dims: [ 1 ] label_filename: "labels.txt" }
instance_group { kind: KIND_CPU count: 2 }
version_policy { latest { num_versions: 2 } }
dynamic_batching {
  priority_levels: 2 default_priority_level: 1
  default_queue_policy { default_timeout_microseconds: 500 allow_timeout_override: true }
}
model_warmup {
  name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "raw" } }
}
parameters { key: "deterministic" value { string_value: "true" } }
"""


def _seeds() -> Iterator[bytes]:
    yield b"\0" + _TEXT.encode()
    yield b'\0version_policy { specific { versions: [ 1, 3 ] } } default_model_filename: "m.onnx"'
    yield b'\0model_operations { op_library_filename: "labels.txt" }'
    config = _Config()
    text_format.Parse(_TEXT, config)
    config.output[0].ClearField("label_filename")
    config.model_warmup[0].inputs["x"].zero_data = True
    yield b"\1" + json_format.MessageToJson(config).encode()
    yield b'\1{"parameters": {"batch_size": {"string_value": "[1"}}}'


_WORDS = tuple(field.name.encode() for field in _Config.DESCRIPTOR.fields) + (b'"../x"', b"\\000")

TARGET = Target(check, _seeds, _mutate, _WORDS)
