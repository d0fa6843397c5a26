"""Folders and files whose names are not UTF-8, as Python has them: with surrogates."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deepsched import compile_model
from tests.support import models
from tests.support.plain_onnxruntime import assert_equals_plain

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / NAME
    found.mkdir()
    return found


@pytest.mark.parametrize("scheduler", ["single_stream", "elastic"])
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_model_in_such_a_folder_opens(folder, scheduler, is_kept):
    model = models.gemm()
    path = models.save(model, folder, os.fsdecode(b"mod\xffel.onnx"))
    cache_dir = str(folder / "cache") if is_kept else None
    for was_cached in (False, is_kept):  # no other case: a cache of its own
        with compile_model(path, 1, 1, None, scheduler, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, model)
            assert engine.compiled.is_shared
            assert engine.compiled.was_cached is was_cached
            assert repr(NAME)[1:-1] in ascii(repr(engine))


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "DEEPSCHED_CACHE_DIR"])
def test_the_default_cache_may_be_in_such_a_folder(folder, mlp, monkeypatch, variable):
    monkeypatch.delenv("DEEPSCHED_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(folder))
    with compile_model(mlp, num_cores=1) as engine:
        assert engine.compiled.folder.startswith(str(folder))


def test_a_working_folder_may_have_such_a_name(folder, monkeypatch):
    models.save(models.gemm(), folder)
    monkeypatch.chdir(folder)
    with compile_model("model.onnx", num_cores=1) as engine, engine.context.trace() as trace:
        assert_equals_plain(engine, models.gemm())
    trace.save("trace.json")
    assert (folder / "trace.json").stat().st_size


def test_the_command_line_takes_such_names_and_prints_the_cache_folders_bytes(folder):
    path = models.save(models.gemm(), folder)
    environment = {**os.environ, "DEEPSCHED_CACHE_DIR": str(folder / "cache")}

    def run(*arguments):
        command = [sys.executable, "-m", "deepsched", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    printed = run("cache", "path")
    assert printed.stdout == os.fsencode(folder / "cache") + b"\n", printed.stderr
    ran = run(
        "benchmark",
        path,
        "-s",
        "sync",
        "-t",
        "0.1",
        "-w",
        "0",
        "-q",
        "-o",
        str(folder / "result.json"),
    )
    assert ran.returncode == 0, ran.stderr
    assert (folder / "result.json").stat().st_size
