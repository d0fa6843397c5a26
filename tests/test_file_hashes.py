"""Hashes that are remembered: never of what a file held before, whatever happens to it."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import blake3
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepsched import Engine
from deepsched.cli import main
from deepsched.models import entry, file_hashes
from deepsched.models.cache import FILE_HASH, Cache
from deepsched.models.folders import keeps_times
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain
from tests.support.users import attacking

PAGE = mmap.PAGESIZE


def keeps_times_at(folder):
    fd = os.open(folder, os.O_RDONLY)
    try:
        return keeps_times(fd)
    finally:
        os.close(fd)


pytestmark = pytest.mark.skipif(
    not keeps_times_at(tempfile.gettempdir()) or not file_hashes.boot_id(),
    reason="the file system of the folder for temporary files, or the kernel, is none that hashes "
    "are remembered for",
)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def later(monkeypatch):
    """Two minutes from now on the clock that ages are told by: nothing has just been written."""
    clock = SimpleNamespace(time_ns=lambda: time.time_ns() + 120 * 10**9)
    monkeypatch.setattr(file_hashes, "time", clock)
    monkeypatch.setattr(entry, "time", clock)


@pytest.fixture
def num_read(monkeypatch):
    """A list that grows with each file that is read to be hashed, or compared with its checksum."""
    read = []
    original = file_hashes.hash_content

    def hash_content(file):
        read.append(file)
        return original(file)

    monkeypatch.setattr(file_hashes, "hash_content", hash_content)
    monkeypatch.setattr(entry, "hash_content", hash_content)
    return read


def written(path, content):
    path.write_bytes(content)
    tick(path)
    return path


def tick(path):
    """Until a change would leave another time than the last one did."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as other:
        while os.stat(other.name).st_ctime_ns <= path.stat().st_ctime_ns:
            os.utime(other.name)


def is_right(cache, path):
    return cache.hash_file(path)[0] == blake3.blake3(path.read_bytes()).hexdigest()


# --- It spares reading ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_external", [False, True])
def test_a_warm_open_reads_no_model(tmp_path, cache, later, num_read, is_external):
    path = tmp_path / "model.onnx"
    onnx.save(gemm(size=1024), path, save_as_external_data=is_external, location="weights.bin")
    for was_cached in (False, True):
        num_read.clear()
        before = bytes_read()
        with Engine(path, None, cache_dir=tmp_path / "cache") as engine:
            assert engine.compiled.was_cached is was_cached
        # Its libraries are open, and cpuinfo and the like are small.
        assert (bytes_read() - before < 10**6) is was_cached
        assert (num_read == []) is was_cached
    with Engine(path, None, cache_dir=tmp_path / "cache") as engine:
        assert_equals_plain(engine, str(path))


def bytes_read():
    """By this process, with read(2) and the like, from files and from the page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_links_to_one_file_share_its_hash(tmp_path, cache, later, num_read):
    path = written(tmp_path / "model.onnx", b"content")
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    assert cache.hash_file(path) == cache.hash_file(link)
    assert len(num_read) == 1
    written(tmp_path / "other.onnx", b"another")
    link.unlink()
    link.symlink_to(tmp_path / "other.onnx")
    assert is_right(cache, link) and is_right(cache, path)


# --- It is never stale ----------------------------------------------------------------------------


def change_in_place(path, content):
    with open(path, "r+b") as file:
        file.write(content)


def change_and_restore_times(path, content):
    found = path.stat()
    change_in_place(path, content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def replace(path, content):
    path.with_name("new").write_bytes(content)
    os.replace(path.with_name("new"), path)


def replace_with_old_times(path, content):
    found = path.stat()
    replace(path, content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def unlink_and_write(path, content):
    path.unlink()  # the next file often gets the same inode
    path.write_bytes(content)


def change_through_a_mapping(path, content):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[:] = content


def append_and_truncate(path, content):
    with open(path, "ab") as file:
        file.write(content)
    shutil.copyfile(path, path.with_name("copy"))
    with open(path, "r+b") as file:
        file.seek(0)
        file.write(content)
        file.truncate()


def touch(path, content):
    os.utime(path)


def go_back_in_time(path, content):
    os.utime(path, (0, 0))


CHANGES = [
    change_in_place,
    change_and_restore_times,
    replace,
    replace_with_old_times,
    unlink_and_write,
    change_through_a_mapping,
    append_and_truncate,
    touch,
    go_back_in_time,
]


@pytest.mark.parametrize("is_leased", [True, False])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=5))
def test_a_changed_file_has_another_hash(tmp_path, cache, later, num_read, is_leased, changes):
    """Contents have one size. Without leases, as on overlays: what is dirty is written back."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_leased:
            patch.setattr(file_hashes, "_has_writer", lambda fd: None)
        contents = (bytes([number]) * 100 for number in itertools.count())
        path = written(tmp_path / "model.onnx", next(contents))
        for change in changes:
            assert is_right(cache, path)
            num_read.clear()
            assert is_right(cache, path)
            assert num_read == []  # remembered
            change(path, next(contents))
            tick(path)
        assert is_right(cache, path)


def test_a_file_that_was_just_written_is_read_again(tmp_path, cache, monkeypatch):
    """Two writes within one tick of the kernel's clock leave the same times: here of 50 ms, since
    newer kernels' clocks are finer."""
    original = file_hashes.file_state

    def coarse(found):
        *others, mtime, ctime = original(found)
        return [*others, mtime - mtime % 50_000_000, ctime - ctime % 50_000_000]

    monkeypatch.setattr(file_hashes, "file_state", coarse)
    path = tmp_path / "model.onnx"
    for number in range(200):
        path.write_bytes(bytes([number]) * 100)
        assert is_right(cache, path)


def test_a_file_whose_times_lie_ahead_is_read_again(tmp_path, cache, later, num_read):
    path = written(tmp_path / "model.onnx", b"content")
    os.utime(path, (time.time() + 10**6,) * 2)
    for _ in range(2):
        assert is_right(cache, path)
    assert len(num_read) == 2


@pytest.mark.parametrize("is_leased", [True, False])
def test_a_mapping_that_is_written_to_again_leaves_no_stale_hash(
    tmp_path, cache, later, monkeypatch, is_leased
):
    """The kernel notes a time at the first write to a page only, until the page is written back."""
    if not is_leased:
        monkeypatch.setattr(file_hashes, "_has_writer", lambda fd: None)
    path = written(tmp_path / "model.onnx", bytes(4 * PAGE))
    with open(path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)  # outlives the descriptor
    with mapping:
        mapping[0] = 1
        times = path.stat().st_mtime_ns
        tick(path)
        for value in range(2, 6):
            assert is_right(cache, path)
            mapping[0] = value
        if is_leased:
            assert path.stat().st_mtime_ns == times  # else this shows nothing
        assert is_right(cache, path)


@pytest.mark.parametrize("magic", [0x6969, 0x65735546, 0x01021994, 0x73717368, 0x4D44])
def test_other_file_systems_are_read_each_time(
    tmp_path, cache, later, num_read, monkeypatch, magic
):
    """NFS and FUSE, whose files other machines change; tmpfs, whose mappings leave no time;
    squashfs, which has its ctimes from an image; FAT, which counts seconds."""
    monkeypatch.setattr("deepsched.models.folders._file_system", lambda fd: magic)
    path = written(tmp_path / "model.onnx", b"content")
    for _ in range(2):
        assert is_right(cache, path)
    assert len(num_read) == 2


def test_after_a_restart_it_is_read_again(tmp_path, cache, later, num_read, monkeypatch):
    path = written(tmp_path / "model.onnx", b"content")
    cache.hash_file(path)
    for boot in ("another", ""):
        monkeypatch.setattr(file_hashes, "boot_id", lambda boot=boot: boot)
        num_read.clear()
        assert is_right(cache, path) and len(num_read) == 1


def test_an_engine_serves_the_changed_model(tmp_path, cache, later):
    path, times = tmp_path / "model.onnx", (10**9, 10**9)
    for seed in (0, 1, 2):
        (tmp_path / "new").write_bytes(gemm(seed).SerializeToString())
        if seed == 2:
            shutil.copyfile(tmp_path / "new", path)  # in place
        else:
            os.replace(tmp_path / "new", path)
        os.utime(path, times)
        tick(path)
        for was_cached in (False, True):
            with Engine(path, None, cache_dir=tmp_path / "cache") as engine:
                assert engine.compiled.was_cached is was_cached
                assert_equals_plain(engine, str(path))


# --- The records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "changed", "of another form", "others' to change"]
)
def test_a_damaged_record_is_not_believed(tmp_path, cache, later, num_read, damage):
    path = written(tmp_path / "model.onnx", b"content")
    cache.hash_file(path)
    (record,) = (cache.folder / "hashes").iterdir()
    text = record.read_text()
    if damage == "others' to change":
        record.chmod(0o666)
    else:
        record.write_text(
            {
                "empty": "",
                "cut": text[:-5],
                "changed": text.replace("a", "b"),
                "of another form": "[]\n" + blake3.blake3(b"[]").hexdigest() + "\n",
            }[damage]
        )
    num_read.clear()
    assert is_right(cache, path) and len(num_read) == 1
    assert is_right(cache, path) and len(num_read) == 1  # written anew


def test_two_processes_may_hash_a_changing_file_at_once(tmp_path, cache):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(100))
    with attacking(lambda: cache.hash_file(path), uid=None):
        for number in range(300):
            (change_in_place, replace)[number % 2](path, bytes([number % 256]) * 100)
            assert is_right(cache, path)


def test_the_cache_command_lists_and_clears_what_is_noted_of_files(
    tmp_path, later, monkeypatch, capsys
):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "model.onnx"
    onnx.save(gemm(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with Engine(path, None):
        pass
    items = Cache(tmp_path / "cache").list()
    assert sorted(item.kind for item in items) == [
        "external files",
        "file hash",
        "file hash",
        "model",
    ]
    hashed = {item.model for item in items if item.kind == FILE_HASH}
    assert hashed == {str(path), str(tmp_path / "weights.bin")}
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sum(item.num_bytes for item in items) == sum(
        file.stat().st_size for file in files if file.name != "CACHEDIR.TAG"
    )
    assert main(["cache", "list"]) == 0
    assert "1 models, 0 measurements, 3 notes on files, " in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 4\n"
    assert os.listdir(tmp_path / "cache" / "v1") == ["CACHEDIR.TAG"]
