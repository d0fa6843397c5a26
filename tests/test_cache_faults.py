"""The cache when something fails: short memory, killed processes, images, network file systems."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepsched import Context, Engine, Topology
from deepsched.advice import advise
from deepsched.errors import ModelError, ThreadError
from deepsched.models import keys
from deepsched.models.cache import Cache
from deepsched.models.keys import RawModel
from deepsched.models.prepare import prepare_model
from deepsched.scheduling.streams import SharedStreams
from tests.support import models
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


# --- Keys -----------------------------------------------------------------------------------------


def key_of(model=None, options=None):
    return RawModel.of(model or gemm(), None, None, options or {}).checksum


def test_the_key_covers_how_a_model_is_compiled(monkeypatch):
    first = key_of()
    assert key_of() == first != key_of(options={"optimizes": False})
    monkeypatch.setattr(keys, "PREPARATION_VERSION", keys.PREPARATION_VERSION + 1)
    assert key_of() != first


def test_what_is_prepared_is_what_the_version_says():
    """After a change here, raise PREPARATION_VERSION: old entries hold what it was before."""
    found = [
        prepare_model(model.SerializeToString(deterministic=True), batch_size, shapes).source
        for model, batch_size, shapes in (
            (models.identity(), None, None),
            (models.identity(), 4, None),
            (models.identity((3, "n")), 2, [[2, 5]]),
            (gemm(size=2, ir_version=3, also_inputs=("w", "b")), 1, None),
        )
    ]
    digest = hashlib.sha256(b"".join(found)).hexdigest()[:16]
    assert (keys.PREPARATION_VERSION, digest) == (1, "d86b8109d816af5f")


def test_run_lengths_hold_on_other_cpus_of_the_same_shape(cache_dir):
    machine = Topology.synthetic(packages=2, cores_per_l3=2)
    first, second = (Topology(cores) for cores in (machine.cores[:2], machine.cores[2:]))
    for topology in (first, second, machine):
        with Context(topology=topology, num_streams=2, scheduler="elastic", pin="none") as context:
            Engine(gemm(), None, context=context, cache_dir=cache_dir)
        num_kept = len(os.listdir(cache_dir / "v1" / "measured"))
        assert num_kept == (2 if topology is machine else 1)


def test_advice_holds_in_another_cpuset_of_the_same_shape(cache_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "deepsched.machine.contention.ContentionMonitor.others_share", lambda self: 0.0
    )
    path = models.save(models.mlp(), tmp_path)
    machine = Topology.synthetic(packages=2, cores_per_l3=1)
    for core in machine.cores:
        topology = SimpleNamespace(detect=lambda core=core: Topology((core,)))
        monkeypatch.setattr("deepsched.advice.answer_cache.Topology", topology)
        found = advise(path, seconds=0.2, num_cores=1)
        assert found.was_remembered is (core is machine.cores[1])
