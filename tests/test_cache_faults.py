"""The cache when something fails: short memory, killed processes, images, network file systems."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from deepsched import Engine
from deepsched.errors import ModelError, ThreadError
from deepsched.models.cache import Cache
from deepsched.scheduling.streams import SharedStreams
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, and /dev/shm; of processes that are started, the former."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("deepsched.models.locations.SHARED_MEMORY", folder)
    return folder


def compile_into(folder, seed=0):
    """The folder of the entry."""
    with Engine(gemm(seed), None, cache_dir=folder) as engine:
        return Path(engine.compiled.folder)


# --- One process's shortage ---------------------------------------------------------------------


def failing(monkeypatch, error, is_hit=lambda source: source.is_optimized):
    original = SharedStreams.open_session

    def open_session(self, source, stream, save_to):
        if is_hit(source):
            raise error
        return original(self, source, stream, save_to)

    monkeypatch.setattr(SharedStreams, "open_session", open_session)


@pytest.mark.parametrize("error", [ModelError("no memory"), ThreadError("no more threads")])
@pytest.mark.parametrize("hits", ["compiled forms", "all"])
def test_a_good_entry_survives_a_shortage(cache_dir, monkeypatch, error, hits):
    entry = compile_into(cache_dir)
    inode = entry.stat().st_ino
    with monkeypatch.context() as patch:
        failing(patch, error, lambda source: source.is_optimized or hits == "all")
        if hits == "all" or isinstance(error, ThreadError):
            with pytest.raises(type(error), match=str(error)):
                Engine(gemm(), None, cache_dir=cache_dir)
        else:
            with Engine(gemm(), None, cache_dir=cache_dir) as engine:
                assert_equals_plain(engine, gemm())
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached and entry.stat().st_ino == inode


def test_an_entry_is_replaced_once_a_fresh_compile_opens(cache_dir, caplog):
    entry = compile_into(cache_dir)
    cache = Cache(cache_dir)
    cache.clear()
    with cache.stage() as broken:  # its checksums are right
        broken.model.write_bytes(b"no model")
        broken.about = {"model": "m", "batch_size": None, "changed_fixed_sizes": False}
        broken.seal()
        cache.publish(broken, entry.name)
    broken.close()
    for was_cached in (False, True):
        with Engine(gemm(), None, cache_dir=cache_dir) as engine:
            assert engine.compiled.was_cached is was_cached
            assert engine.compiled.folder == str(entry)
            assert_equals_plain(engine, gemm())
    (message,) = caplog.messages
    assert "compiled again" in message
