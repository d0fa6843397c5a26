"""models.yaml: it is read, or the error is an OptionError or says what is wrong with a model; what
is read can be looked up, and finding its models fails in the same ways."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml

from deepsched.errors import ModelError, OptionError
from deepsched.server.repository.configuration import read_configuration
from deepsched.server.settings import Settings
from fuzz.folders import folder
from fuzz.json_values import mutated
from fuzz.target import Target


def check(data: bytes) -> None:
    path = folder("yaml") / "models.yaml"
    path.write_bytes(data)
    try:
        found = read_configuration(str(path), Settings.__struct_fields__)
        for name in found.settings:
            assert str(path) in found.place(name)
        for find in found.models.values():
            find()
    except (OptionError, ModelError) as error:
        assert str(error)


_TEXT = b"""\
port: 8000
keep_alive: 2.5
models:
  resnet: resnet.onnx
  bert:
    versions: {1: a.onnx, 2: b.onnx}
    version_policy: {latest: 1}
    batch_size: 4
  other: &it
    path: "."
    version_policy: [1, 2]
    num_streams: 2
    timeout: 1.5
  again: *it
"""


def _seeds() -> Iterator[bytes]:
    yield _TEXT
    yield b"? [a, b]\n: {<<: {c: 1}}\n- !!float 1\n"
    yield b"models: {a: {path: x.onnx, max_batch_size: 0, version_policy: all}}\n"
    yield json.dumps(yaml.safe_load(_TEXT)).encode()  # YAML as well, and what `mutated` reads
    yield b"host: !!binary aGk=\nport: 0o17\nwatch: yes\nlame_duck: 2001-01-01 1:2:3.4 +5\n"


_WORDS = (
    *(b"models", b"versions", b"version_policy", b"latest", b"path", b"<<: ", b"!!int ", b"!!"),
    *(b"&a ", b"*a", b"? ", b": ", b"- ", b"|\n ", b">\n ", b"{", b"}", b"[", b"]", b"---\n"),
    *(b"2001-01-01", b"0x", b"1:2", b".inf", b"~", b"!!timestamp ", b"!!set ", b"!!omap "),
)

TARGET = Target(check, _seeds, mutated, _WORDS, max_bytes=1024)
