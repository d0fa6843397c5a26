"""The cache folder: compiled models and what they were measured to do. Nothing else writes there.

    <cache>/v1/<key>/               an entry: a compiled model; its key says what it was made from
        about.json                  what it was made from, with the checksums of the files
        model.onnx, weights         what ONNX Runtime opens
        checked.json                the state of the files when the checksums were last verified
    <cache>/v1/.staging-*/          an entry that is being made, or removed
    <cache>/v1/external/<key>.json  the external data files that a model names
    <cache>/v1/measured/<key>.json  a measurement: run lengths by width, or advice

An entry appears complete, by one rename, and its model is never written again. Measurements and
lists of external files are small records of their own, which outlive the entry: their keys are made
from the model's content, so they hold when it is compiled again. The size bound covers all of it.
Least recently used entries and records are evicted first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.errors import OptionError
from deepsched.models.entry import (
    GRACE_S,
    Damaged,
    Entry,
    lock_exclusive,
    lock_shared,
    make_locked_folder,
    read_about,
    remove_stale,
)
from deepsched.models.records import TEMPORARY, Records, read_record

logger = logging.getLogger("deepsched")

_VERSION = "v1"
_STAGING = ".staging-"
_EXTERNAL = "external"
_MEASURED = "measured"

_MAX_BYTES = 10 * 2**30
_MAX_COUNT = 1000
"""Of entries, and of records of each kind."""

_OLD_ADVICE = re.compile(r"\.advice-[0-9a-f]{32}\.json")
"""Where advice was kept before there was `measured`; `clear` removes it."""


class Item(NamedTuple):
    """A line of `deepsched cache list`: a compiled model or a measurement."""

    key: str
    """The name of its folder, or of its file, in the cache."""
    model: str
    """The model's path; for a model given as bytes, how many they are."""
    batch_size: int | None
    """The batch size it was compiled or measured for; None: any that the model's file allows."""
    num_bytes: int
    """Its size on disk."""
    used: float
    """Time of its last use, in seconds since the epoch."""
    is_in_use: bool
    """Whether a process has the compiled model open."""
    kind: str
    """Either "model", or the kind of a measurement: "run lengths" or "advice"."""


class Cache:
    """The entries and records in one folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if need be.

        Raises:
            OSError: it cannot be made, or others than this user may write to it: whoever can write
                there could change the models.
            OptionError: DEEPSCHED_CACHE_BYTES is not a number.
        """
        self.folder = folder / _VERSION
        self._max_bytes = _max_bytes()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.stat()
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{self.folder} belongs to another user")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"others may write to {self.folder}; chmod go-w helps")
        self._external = Records(self.folder / _EXTERNAL)
        self._measured = Records(self.folder / _MEASURED)

    # --- Entries ----------------------------------------------------------------------------

    def find(self, key: str) -> Entry | None:
        """The entry of `key`, locked and verified. A damaged one is removed."""
        entry = lock_shared(self.folder / key)
        if entry is None:
            return None
        try:
            entry.verify()
        except Damaged as damage:
            logger.warning("the compiled model in %s is damaged: %s", entry.folder, damage)
            self.discard(entry)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.folder)  # the time of its last use
        return entry

    def discard(self, entry: Entry) -> None:
        """Removes an entry that does not work. Processes that have it mapped keep the pages."""
        self._remove_entry(entry.folder)
        entry.close()

    @contextlib.contextmanager
    def stage(self) -> Iterator[Entry]:
        """An empty, locked folder to compile into; removed at the block's end unless published."""
        entry = make_locked_folder(self.folder, _STAGING)
        folder = entry.folder
        try:
            yield entry
        finally:
            if entry.folder == folder:  # not published
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, entry: Entry, key: str) -> bool:
        """Makes a sealed staging folder the entry of `key`, by one rename, and evicts others.

        Returns:
            False if another process was faster. Its entry is the same, and stays.
        """
        target = self.folder / key
        try:
            entry.folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            return False
        entry.folder = target
        self.evict()
        return True

    # --- Records ----------------------------------------------------------------------------

    def external_files(self, key: str) -> list[str] | None:
        """The external data files that a model names; None if that is not known."""
        names = self._external.read(key)
        return names if isinstance(names, list) else None

    def remember_external_files(self, key: str, names: list[str]) -> None:
        """Spares the next process parsing the model only to learn which files to hash."""
        self._external.write(key, names)

    def measurement(self, key: str) -> Any:
        """The value of a measurement; None if there is none, or it is damaged."""
        record = self._measured.read(key)
        return record.get("value") if isinstance(record, dict) else None

    def remember_measurement(
        self, key: str, kind: str, model: str, batch_size: int | None, value: Any
    ) -> None:
        """Keeps a measurement, a JSON value; for `kind`, `model` and `batch_size` see Item. Raises
        OSError."""
        self._measured.write(
            key, {"kind": kind, "model": model, "batch_size": batch_size, "value": value}
        )
        self.evict()

    # --- All of it ----------------------------------------------------------------------------

    def list(self) -> list[Item]:
        """Its compiled models and measurements, most recently used first."""
        items = []
        for folder in self._entries():
            with contextlib.suppress(OSError, ValueError):  # being removed, or damaged
                items.append(_item(folder, read_about(folder), _is_in_use(folder), "model"))
        for path in self._measured.paths():
            with contextlib.suppress(OSError, ValueError):
                record = read_record(path)
                items.append(_item(path, record, False, str(record["kind"])))
        return sorted(items, key=lambda item: -item.used)

    def clear(self) -> int:
        """Removes everything that is not in use; returns how many items of `list` that were."""
        num_removed = sum(
            self._remove(path) for path in [*self._entries(), *self._measured.paths()]
        )
        for records in (self._external, self._measured):
            shutil.rmtree(records.folder, ignore_errors=True)
        for path in self.folder.iterdir():
            if _OLD_ADVICE.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._sweep_stale(grace_s=0)
        return num_removed

    def evict(self) -> None:
        """Removes the least recently used until the bounds hold.

        What is in use stays, and so does the most recently used: the caller has just stored it.
        """
        self._sweep_stale(GRACE_S)
        found = []
        for path in [*self._entries(), *self._external.paths(), *self._measured.paths()]:
            with contextlib.suppress(OSError):  # another process removes it
                found.append((path.stat().st_mtime_ns, _num_bytes(path), path))
        num_bytes = sum(size for _, size, _ in found)
        counts = Counter(path.parent for _, _, path in found)
        for _, size, path in sorted(found)[:-1]:
            is_over = num_bytes > self._max_bytes or counts[path.parent] > _MAX_COUNT
            if is_over and self._remove(path):
                num_bytes -= size
                counts[path.parent] -= 1

    def _entries(self) -> Iterator[Path]:
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and path.name not in (_EXTERNAL, _MEASURED):
                yield path

    def _remove(self, path: Path) -> bool:
        """Removes an entry or a record; False if it is in use."""
        if path.parent != self.folder:  # a record, which nobody keeps open
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return False
            return True
        entry = lock_exclusive(path)
        if entry is None:
            return False
        self._remove_entry(path)
        entry.close()
        return True

    def _remove_entry(self, folder: Path) -> None:
        # Renamed first: a process that looks it up meanwhile finds all of it or nothing.
        try:
            staging = tempfile.mkdtemp(prefix=_STAGING, dir=self.folder)
            os.rename(folder, staging)
        except OSError:
            return  # another process removed it
        shutil.rmtree(staging, ignore_errors=True)

    def _sweep_stale(self, grace_s: float) -> None:
        """Removes what killed processes left behind."""
        for folder in self.folder.glob(f"{_STAGING}*"):
            remove_stale(folder, grace_s)
        for records in (self._external, self._measured):
            for path in records.folder.glob(f"{TEMPORARY}*"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime >= grace_s:
                        path.unlink()


def _max_bytes() -> int:
    text = os.environ.get("DEEPSCHED_CACHE_BYTES")
    if not text:
        return _MAX_BYTES
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"DEEPSCHED_CACHE_BYTES must be a number of bytes, got {text!r}"
        ) from None


def _item(path: Path, about: dict[str, Any], is_in_use: bool, kind: str) -> Item:
    return Item(
        path.stem,
        str(about.get("model", "?")),
        about.get("batch_size"),
        _num_bytes(path),
        path.stat().st_mtime,
        is_in_use,
        kind,
    )


def _is_in_use(folder: Path) -> bool:
    entry = lock_exclusive(folder)
    if entry is None:
        return True
    entry.close()
    return False


def _num_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    with os.scandir(path) as files:
        return sum(file.stat().st_size for file in files)
