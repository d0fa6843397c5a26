"""Models in ONNX Runtime's own format open as they do in onnxruntime."""

from __future__ import annotations

import onnxruntime
import pytest

from deepsched import Engine
from deepsched.errors import ModelError
from tests.support import models
from tests.support.plain_onnxruntime import assert_equals_plain


@pytest.fixture
def path(tmp_path):
    """As onnxruntime's converter writes it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(models.gemm().SerializeToString(), options)
    return options.optimized_model_filepath


@pytest.mark.parametrize("is_file", [True, False])
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_model_in_onnxruntimes_format_opens(path, tmp_path, is_file, is_kept):
    with open(path, "rb") as file:
        model = path if is_file else file.read()
    cache_dir = tmp_path / "cache" if is_kept else None
    for was_cached in (False, is_kept):
        with Engine(model, cache_dir=cache_dir) as engine:
            assert engine.compiled.was_cached is was_cached
            assert engine.input_shapes == [(1, 256)]  # prepared as any other
            assert_equals_plain(engine, path)


def test_a_damaged_one_is_an_error(path):
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match=r"model\.ort"):
        Engine(path)
