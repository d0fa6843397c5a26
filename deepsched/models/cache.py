"""The cache folder: compiled models and what they were measured to do. Nothing else writes there.

    <cache>/v1/CACHEDIR.TAG         marks the folder as ours
    <cache>/v1/<key>/               an entry: a compiled model; its key says what it was made from
        about.json                  what it was made from, with the checksums of the files
        model.onnx, weights         what ONNX Runtime opens
        checked.json                the state of the files when the checksums were last verified
    <cache>/v1/.staging-*/          an entry that is being made, or removed
    <cache>/v1/external/<key>.json  the external data files that a model names
    <cache>/v1/hashes/<key>.json    the hash of a model's file, good while the file's state is this
    <cache>/v1/measured/<key>.json  a measurement: run lengths by width, or advice

An entry appears complete, by one rename, and its model is never written again. Measurements and
lists of external files are small records of their own, which outlive the entry: their keys are made
from the model's content, so they hold when it is compiled again. The size bound covers all of it,
and `list` shows all of it. Least recently used entries and records are evicted first.

Nobody else may be able to change the folder, and it is opened once: all that happens in it is
relative to that descriptor and follows no link. Only what has the name and the content of an entry
or a record is ever listed, counted or removed, and only file by file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.errors import OptionError
from deepsched.models.batch import BatchSize
from deepsched.models.entry import (
    Damaged,
    Entry,
    holds_others,
    is_entry,
    num_bytes,
    read_about,
    remove_entry_files,
)
from deepsched.models.file_hashes import FileHashes
from deepsched.models.folders import Folder, open_trusted
from deepsched.models.locks import lock_exclusive, lock_shared, make_locked_folder
from deepsched.models.records import (
    Records,
    holds_other_files,
    is_temporary,
    read_record,
    sweep_temporary_files,
)
from deepsched.models.tag import TAG, has_tag, write_tag

logger = logging.getLogger("deepsched")

_VERSION = "v1"
_EXTERNAL = "external"
_HASHES = "hashes"
_MEASURED = "measured"

EXTERNAL_FILES = "external files"
FILE_HASH = "file hash"
"""Kinds of items that spare reading a model's files."""

_KEY = re.compile(r"[0-9a-f]{32}")
_STAGING = re.compile(r"\.staging-[0-9a-z_]{8,16}")

_MAX_BYTES = 10 * 2**30
_MAX_COUNT = 1000
"""Of entries, and of records of each kind."""

_OLD_ADVICE = re.compile(r"\.advice-[0-9a-f]{32}\.json")
"""Where advice was kept before there was `measured`; `clear` removes it."""


class Item(NamedTuple):
    """A line of `deepsched cache list`: a compiled model, a measurement, or what is noted of files
    so that they need not be read again."""

    key: str
    """The name of its folder, or of its file, in the cache."""
    model: str
    """The model's path; for a model given as bytes, how many they are."""
    batch_size: BatchSize
    """The batch size it was compiled or measured for; None: any that the model's file allows, or
    of no meaning, as for files."""
    num_bytes: int
    """Its size on disk."""
    used: float
    """Time of its last use, in seconds since the epoch."""
    is_in_use: bool
    """Whether a process has the compiled model open."""
    kind: str
    """Either "model", or the kind of a measurement, "run lengths" or "advice", or EXTERNAL_FILES or
    FILE_HASH."""
    others_share: float | None
    """Of a measurement: the share of the worst CPU's time that others used while it was made, from
    0 to 1. None if that is unknown, and for all that is no measurement."""


class _Stored(NamedTuple):
    """An entry or a record, as eviction sees it."""

    used_ns: int
    num_bytes: int
    records: Records | None
    """The folder of the record; None for an entry."""
    name: str


class Cache:
    """The entries and records in one folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if need be.

        Raises:
            OSError: it cannot be made; others than this user and root may change it, or a folder
                above it, and with it the models; several machines may share it; or it holds what
                is not the cache's.
            OptionError: DEEPSCHED_CACHE_BYTES is not a number.
        """
        self.folder = folder / _VERSION
        self._max_bytes = _max_bytes()
        parent = open_trusted(folder, makes=True)
        self._folder = parent.open_folder(_VERSION, makes=True)
        if not has_tag(self._folder):
            self._adopt()
        self._external = Records(self._folder, _EXTERNAL)
        self._measured = Records(self._folder, _MEASURED)
        hashes = Records(self._folder, _HASHES)
        self._file_hashes = FileHashes(hashes, FILE_HASH)
        self._records = (self._external, self._measured, hashes)
        self._sweep()

    def _adopt(self) -> None:
        """Marks the folder as ours: it is empty, or a version before there was the mark made it."""
        strangers = sorted(name for name in self._folder.names() if not self._may_be_old(name))
        if strangers:
            names = ", ".join(map(repr, strangers[:3])) + (", ..." if strangers[3:] else "")
            raise FileExistsError(
                f"{self.folder} is no cache of deepsched's: it holds {names}; give the cache a "
                "folder of its own"
            )
        with contextlib.suppress(OSError):  # a read-only cache stays as it is
            write_tag(self._folder)

    def _may_be_old(self, name: str) -> bool:
        if name == TAG:
            return has_tag(self._folder)  # another process has just marked it
        if is_temporary(name) or _OLD_ADVICE.fullmatch(name):
            return True
        try:
            folder = self._folder.open_folder(name)
            if _KEY.fullmatch(name):
                return is_entry(folder)
            if _STAGING.fullmatch(name):
                return not holds_others(folder)
            return name in (_EXTERNAL, _HASHES, _MEASURED) and not holds_other_files(folder)
        except FileNotFoundError:
            return True  # another process removed it
        except OSError:
            return False

    # --- Entries ----------------------------------------------------------------------------

    def find(self, key: str) -> Entry | None:
        """The entry of `key`, locked and verified. A damaged one is removed.

        Raises:
            OSError: there is a damaged one, or something else, and it cannot be removed.
        """
        folder = lock_shared(self._folder, key)
        if folder is None:
            return None
        entry = Entry(folder)
        if not self._is_intact(entry):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder.fd)  # the time of its last use
        return entry

    def is_still_intact(self, entry: Entry) -> bool:
        """Reads every byte of an entry again. If it is damaged it is removed.

        Raises:
            OSError: it is damaged, and cannot be removed.
        """
        return self._is_intact(entry, reads_all=True)

    def _is_intact(self, entry: Entry, reads_all: bool = False) -> bool:
        try:
            entry.verify(reads_all)
        except Damaged as damage:
            if not self.discard(entry):
                raise OSError(f"{entry.path} is damaged, and cannot be removed: {damage}") from None
            logger.warning("the compiled model in %s is damaged: %s", entry.path, damage)
            return False
        return True

    def discard(self, entry: Entry) -> bool:
        """Removes an entry that does not work; False if that fails. Processes that have it mapped
        keep the pages."""
        is_removed = self._remove_folder(entry.folder)
        entry.close()
        return is_removed

    @contextlib.contextmanager
    def stage(self) -> Iterator[Entry]:
        """An empty, locked folder to compile into; removed at the block's end unless published."""
        entry = Entry(make_locked_folder(self._folder, ".staging-"))
        path = entry.path
        try:
            yield entry
        finally:
            if entry.path == path:  # not published
                with contextlib.suppress(OSError):
                    self._remove_folder(entry.folder)

    def publish(self, entry: Entry, key: str) -> bool:
        """Makes a sealed staging folder the entry of `key`, by one rename, and evicts others.

        Returns:
            False if another process was faster. Its entry is the same, and stays.
        """
        try:
            os.rename(entry.path.name, key, src_dir_fd=self._folder.fd, dst_dir_fd=self._folder.fd)
        except OSError:
            if (found := lock_shared(self._folder, key)) is None or not is_entry(found):
                raise
            return False
        entry.folder.path = self.folder / key
        self.evict()
        return True

    # --- Records ----------------------------------------------------------------------------

    def external_files(self, key: str) -> list[str] | None:
        """The external data files that a model names; None if that is not known."""
        record = self._external.read(key)
        names = record.get("names") if isinstance(record, dict) else None
        return names if isinstance(names, list) else None

    def remember_external_files(self, key: str, model: str, names: list[str]) -> None:
        """Spares the next process parsing the model only to learn which files to hash. Raises
        OSError."""
        self._external.write(key, {"kind": EXTERNAL_FILES, "model": model, "names": names})

    def hash_file(self, path: Path | str) -> tuple[str, list[int]]:
        """The checksum of a file, and its state; see FileHashes.of. Raises OSError."""
        return self._file_hashes.of(path)

    def measurement(self, key: str) -> Any:
        """The value of a measurement; None if there is none, or it is damaged, or of a version that
        did not look whether others took the CPUs."""
        record = self._measured.read(key)
        is_known = isinstance(record, dict) and "others_share" in record
        return record.get("value") if is_known else None

    def remember_measurement(
        self,
        key: str,
        kind: str,
        model: str,
        batch_size: BatchSize,
        others_share: float | None,
        value: Any,
    ) -> None:
        """Keeps a measurement, a JSON value; for the other arguments see Item. Raises OSError."""
        record = {
            "kind": kind,
            "model": model,
            "batch_size": batch_size,
            "others_share": others_share,
            "value": value,
        }
        self._measured.write(key, record)
        self.evict()

    # --- All of it ----------------------------------------------------------------------------

    def list(self) -> list[Item]:
        """All that is kept, most recently used first."""
        items = []
        for name in self._entries():
            with contextlib.suppress(OSError, ValueError):  # being removed, or damaged
                is_in_use = self._is_in_use(name)
                folder = self._folder.open_folder(name)
                about = read_about(folder)
                used = folder.stat().st_mtime
                items.append(_item(name, about, num_bytes(folder), used, is_in_use, "model"))
        for records in self._records:
            for name in records.names():
                # KeyError and TypeError: of another version's shape.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    folder = records.open()
                    about, found = read_record(folder, name), folder.stat(name)
                    key, kind = name.removesuffix(".json"), str(about["kind"])
                    items.append(_item(key, about, found.st_size, found.st_mtime, False, kind))
        return sorted(items, key=lambda item: -item.used)

    def clear(self) -> int:
        """Removes everything that is not in use; returns how many items of `list` that were."""
        num_removed = sum(self._remove_entry(name) for name in self._entries())
        for records in self._records:
            num_removed += sum(records.remove(name) for name in records.names())
        self._sweep()
        for records in self._records:
            records.remove_folder()
        for name in self._folder.names():
            if _OLD_ADVICE.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._folder.fd)
        return num_removed

    def evict(self) -> None:
        """Removes the least recently used until the bounds hold.

        What is in use stays, and so does the most recently used: the caller has just stored it.
        """
        found = list(self._stored())
        total = sum(it.num_bytes for it in found)
        counts = Counter(it.records for it in found)
        for it in sorted(found, key=lambda it: it.used_ns)[:-1]:
            is_over = total > self._max_bytes or counts[it.records] > _MAX_COUNT
            if is_over and self._remove(it):
                total -= it.num_bytes
                counts[it.records] -= 1

    def _stored(self) -> Iterator[_Stored]:
        for name in self._entries():
            with contextlib.suppress(OSError):  # another process removes it
                folder = self._folder.open_folder(name)
                yield _Stored(folder.stat().st_mtime_ns, num_bytes(folder), None, name)
        for records in self._records:
            for name in records.names():
                with contextlib.suppress(OSError):
                    found = records.open().stat(name)
                    yield _Stored(found.st_mtime_ns, found.st_size, records, name)

    def _entries(self) -> Iterator[str]:
        """Names of the entries: of that form, this user's, and with nothing else inside."""
        for name in self._folder.names():
            if _KEY.fullmatch(name):
                with contextlib.suppress(OSError):  # being removed, or no folder of ours
                    if is_entry(self._folder.open_folder(name)):
                        yield name

    def _is_in_use(self, name: str) -> bool:
        folder = lock_exclusive(self._folder, name)
        if folder is None:
            return True
        folder.close()
        return False

    def _remove(self, stored: _Stored) -> bool:
        """Removes an entry or a record; False if it is in use, or cannot be removed."""
        if stored.records is not None:
            return stored.records.remove(stored.name)
        return self._remove_entry(stored.name)

    def _remove_entry(self, name: str) -> bool:
        try:
            folder = lock_exclusive(self._folder, name)
            return folder is not None and self._remove_folder(folder)
        except OSError:
            return False

    def _remove_folder(self, folder: Folder) -> bool:
        """Removes a locked entry or staging folder; False if it stays, in whole or in part."""
        name = folder.path.name
        if not self._folder.has(name, folder):
            return True  # another process removed it
        if holds_others(folder):
            return False
        # Renamed first: a process that looks it up meanwhile finds all of it or nothing. Where it
        # is part of a container's image that fails (overlayfs: EXDEV), but not its removal.
        aside = f".staging-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            os.rename(name, aside, src_dir_fd=self._folder.fd, dst_dir_fd=self._folder.fd)
            name = aside
        try:
            remove_entry_files(folder)
            os.rmdir(name, dir_fd=self._folder.fd)
        except OSError:
            return False
        return True

    def _sweep(self) -> None:
        """Removes what killed processes left behind: it is unlocked."""
        for name in self._folder.names():
            if _STAGING.fullmatch(name):
                self._remove_entry(name)
        with contextlib.suppress(OSError):
            sweep_temporary_files(self._folder)
        for records in self._records:
            records.sweep()


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


def _item(
    key: str, about: dict[str, Any], num_bytes: int, used: float, is_in_use: bool, kind: str
) -> Item:
    model, batch_size = str(about.get("model", "?")), about.get("batch_size")
    others_share = about.get("others_share")
    return Item(key, model, batch_size, num_bytes, used, is_in_use, kind, others_share)
