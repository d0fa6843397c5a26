"""A damaged cache folder: what is found in it is what was put there, or nothing, or an OSError says
that it cannot be used. All of it can be listed, evicted and cleared. No file outside of it changes.

The first byte chooses a file of the cache, the second what becomes of it: other bytes, a record
with other values and its right checksum, a shorter file, a link that leads out, a folder, a pipe,
nothing. The rest is what it holds then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import blake3

from deepsched.models.cache import Cache
from fuzz.folders import folder
from fuzz.target import Target

_KEY = "0" * 32
_MODEL = b"model" * 30
_WEIGHTS = b"weights" * 100
_ABOUT = {"model": "m.onnx", "batch_size": 1, "batching": [True, 1, ""]}
_OUTSIDE = b"not the cache's"

_FILES = (
    *(f"v1/{_KEY}/{name}" for name in ("about.json", "checked.json", "model.onnx", "weights")),
    *(f"v1/{kind}/{_KEY}.json" for kind in ("external", "measured")),
    *("v1/CACHEDIR.TAG", "v1/hashes", "v1/measured", f"v1/{_KEY}", f"v1/{_KEY}/other", "v1/new"),
    *("v1/.staging-00000000", f"v1/{_KEY}/.tmp-00000000", "v1/.tmp-00000000", "v1"),
)


def check(data: bytes) -> None:
    top = folder("cache")
    outside, root = top / "outside", top / "cache"
    shutil.rmtree(root, ignore_errors=True)
    outside.write_bytes(_OUTSIDE)
    _fill(root)
    _damage(root / _FILES[(data[0] if data else 0) % len(_FILES)], data[1:], outside)
    with contextlib.suppress(OSError):
        _use(Cache(root))
    assert outside.read_bytes() == _OUTSIDE


def _fill(root: Path) -> None:
    cache = Cache(root)
    with cache.stage() as entry:
        entry.model.write_bytes(_MODEL)
        entry.weights.write_bytes(_WEIGHTS)
        entry.about = dict(_ABOUT)
        entry.seal()
        cache.publish(entry, _KEY)
    entry.close()
    cache.remember_external_files(_KEY, "m.onnx", ["a", "b"])
    cache.remember_measurement(_KEY, "advice", "m.onnx", 1, 0.0, {"value": [1, 2.5]})


def _damage(path: Path, data: bytes, outside: Path) -> None:
    how, content = (data[0] if data else 0) % 7, data[1:]
    if how == 2:
        size = path.stat().st_size if path.is_file() else 0
        content = path.read_bytes()[: size * (content[0] if content else 0) // 256] if size else b""
    if path.is_dir():
        if how == 1:
            return  # it stays, with what it holds
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if how == 1:
        text = content.decode("utf-8", "replace").replace("\n", " ")
        path.write_text(f"{text}\n{blake3.blake3(text.encode()).hexdigest()}\n")
    elif how == 3:
        path.symlink_to(outside)
    elif how == 4:
        path.mkdir()
        (path / "x").write_bytes(content)
    elif how == 5:
        os.mkfifo(path)
    elif how != 6:
        path.write_bytes(content)
    if how in (0, 1, 2, 4):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _use(cache: Cache) -> None:
    with contextlib.suppress(OSError):  # it says that something cannot be removed
        entry = cache.find(_KEY)
        if entry is not None:
            assert entry.model.read_bytes() == _MODEL
            assert not entry.weights.exists() or entry.weights.read_bytes() == _WEIGHTS
            entry.close()
    names = cache.external_files(_KEY)
    assert names is None or isinstance(names, list)
    cache.measurement(_KEY)
    for item in cache.list():
        assert item.num_bytes >= 0
        assert isinstance(item.kind, str)
    cache.evict()
    cache.clear()


def _seeds() -> Iterator[bytes]:
    record = {"kind": "advice", "model": "m", "batch_size": None, "others_share": 0, "value": 1}
    sums = {"model.onnx": [150, blake3.blake3(_MODEL).hexdigest()]}
    for number in range(len(_FILES)):
        for how in range(7):
            yield bytes([number, how, 128])
        yield bytes([number, 1]) + json.dumps(record).encode()
        yield bytes([number, 1]) + json.dumps({**_ABOUT, "files": sums}).encode()


TARGET = Target(check, _seeds, words=(b'"files"', b'"names"', b'"value"', b"[[", b"null", b"1e999"))
