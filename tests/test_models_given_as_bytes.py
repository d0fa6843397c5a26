"""Models that are no files, such as decrypted ones, are on no disk unless a folder is named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from deepsched import Engine, benchmark_model, compile_model
from deepsched.advice import advise
from deepsched.analysis import analyze
from deepsched.models import compiled
from deepsched.models.cache import Cache
from deepsched.models.folders import is_in_memory
from tests.support.contexts import two_sessions
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain

SIZE = 1024
NUM_BYTES = 4 * SIZE * SIZE


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch, quiet):
    """The default cache, as a deployment sets it for all of its models."""
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def secret():
    return gemm(size=SIZE)


@pytest.fixture
def written(tmp_path):
    """A function that tells how many bytes this process wrote to disks since the last call; what
    goes to tmpfs does not count."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if is_in_memory(fd):
            pytest.skip("the folder for temporary files is in memory, so nothing would show")
    finally:
        os.close(fd)
    last = 0

    def since_last():
        nonlocal last
        text = Path("/proc/self/io").read_text()
        now = int(text.split("\nwrite_bytes: ")[1].split()[0])
        found, last = now - last, now
        return found

    since_last()
    return since_last


OPENS = {
    "bytes": lambda: Engine(secret().SerializeToString(), None).close(),
    "ModelProto": lambda: compile_model(secret(), None).close(),
    "no cache": lambda: Engine(secret(), None, cache_dir=None).close(),
    "elastic": lambda: Engine(secret(), None, scheduler="elastic").close(),
    "benchmark": lambda: benchmark_model(
        secret(), [np.ones((1, SIZE), np.float32)], num_iterations=2
    ),
    "advise": lambda: advise(secret(), seconds=0.1, num_cores=1),
    "analyze": lambda: analyze(secret(), 1, seconds=0.1, num_cores=1),
    "analyze without a cache": lambda: analyze(
        secret(), 1, seconds=0.1, num_cores=1, cache_dir=None
    ),
}


@pytest.mark.parametrize("how", OPENS)
def test_weights_reach_no_disk(cache_dir, written, how):
    OPENS[how]()
    assert written() < NUM_BYTES
    assert [item for item in Cache(cache_dir).list() if item.kind == "model"] == []


def test_a_folder_that_is_named_keeps_them(cache_dir, written):
    for was_cached in (False, True):
        with Engine(secret(), None, cache_dir=cache_dir) as engine:
            assert engine.compiled.was_cached is was_cached
    assert written() >= NUM_BYTES  # else the tests above show nothing


def test_they_are_shared_in_memory(cache_dir):
    with two_sessions() as context:
        engine = Engine(secret(), None, context=context)
        assert engine.compiled.is_shared and engine.compiled.folder is None
        assert engine.compiled.why_not == ""
        assert_equals_plain(engine, secret())


@pytest.mark.parametrize("cache_dir_option", [{}, {"cache_dir": None}, {"cache_dir": "unusable"}])
def test_where_no_folder_is_in_memory_each_stream_has_its_own(
    tmp_path, written, monkeypatch, caplog, cache_dir_option
):
    """A container may have no /dev/shm, and a folder for temporary files that is on a disk."""
    monkeypatch.chdir(tmp_path)
    Path("unusable").write_text("")
    monkeypatch.setattr("deepsched.models.locations.SHARED_MEMORY", tmp_path)
    with (
        caplog.at_level(logging.WARNING, "deepsched"),
        two_sessions() as context,
    ):
        engine = Engine(secret(), None, context=context, **cache_dir_option)
        assert not engine.compiled.is_shared and "is on a disk" in engine.compiled.why_not
        assert_equals_plain(engine, secret())
    (message,) = caplog.messages
    assert "each stream has weights of its own" in message
    assert written() < NUM_BYTES


def test_what_is_measured_is_kept_under_a_hash_alone(cache_dir):
    model = secret()
    model.graph.name = model.producer_name = "secret"
    model.graph.node[0].name = "secret"
    for _ in range(2):
        Engine(model, None, scheduler="elastic").close()
    advise(model, None, seconds=0.1, num_cores=1)
    kept = Cache(cache_dir).list()
    assert sorted(item.kind for item in kept) == ["advice", "run lengths"]
    assert all(item.model.endswith(" bytes") for item in kept)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for path in (cache_dir / "v1" / "measured").iterdir():
        text = path.read_text()
        assert "secret" not in text and not any(f'"{name}"' in text for name in names)


def test_advice_compiles_a_model_once(monkeypatch):
    num_compiled = 0
    original = compiled._compile

    def counted(*args):
        nonlocal num_compiled
        num_compiled += 1
        return original(*args)

    monkeypatch.setattr(compiled, "_compile", counted)
    advise(secret(), None, seconds=0.1, num_cores=1)
    assert num_compiled == 1
