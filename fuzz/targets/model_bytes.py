"""A model's bytes, up to what ONNX Runtime is given: they are prepared, or refused by a ModelError
or, for what is asked of them, an OptionError. Of a model that is a file, only files in its own
folder are external data. Taking large weights out of a model and putting them back changes nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from deepsched.errors import ModelError, OptionError
from deepsched.models.batch import BatchSize
from deepsched.models.batching.dimension import why_not_shared
from deepsched.models.batching.operators import operators_that_see_the_batch
from deepsched.models.external_data import external_paths
from deepsched.models.large_weights import split
from deepsched.models.prepare import inputs_of, prepare_model
from fuzz.folders import folder
from fuzz.models import mutate, seeds
from fuzz.target import Target


def check(data: bytes) -> None:
    _check_split(data)
    path = _folder() / "model.onnx"
    path.write_bytes(data)
    _check_prepared(str(path), "auto")
    _check_prepared(data, 2)


def _check_prepared(model: str | bytes, batch_size: BatchSize) -> None:
    try:
        prepared = prepare_model(model, batch_size, None)
        if isinstance(model, str):
            for found in external_paths(model, prepared.external_files).values():
                real = os.path.realpath(found)
                assert real == found
                assert real.startswith(f"{_folder()}/"), real
        proto = onnx.load_from_string(prepared.graph)
        why_not_shared(proto)
        operators_that_see_the_batch(proto)
        inputs_of(prepared)
    except (ModelError, OptionError) as error:
        assert str(error)


def _check_split(data: bytes) -> None:
    with suppress(ValueError, DecodeError):
        graph, weights = split(data)
        whole = onnx.load_from_string(data)
        assert onnx.load_from_string(weights.put_back(graph)) == whole


def _folder() -> Path:
    path = Path(os.path.realpath(folder("models")))
    if not (path / "weights.bin").exists():
        (path / "weights.bin").write_bytes(bytes(4096))
        (path / "x").mkdir()
        (path / "x" / "weights.bin").write_bytes(bytes(64))
        (path / "a").symlink_to("/etc/hostname")
        (path / "h").symlink_to("weights.bin")
        (path / "w").symlink_to("..")
    return path


TARGET = Target(check, seeds, mutate, max_bytes=40_000)
