"""Small JSON files: replaced atomically, and read only if intact."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import blake3

TEMPORARY = ".tmp-"
"""Prefix of a file that is being written."""


def write_record(path: Path, value: Any) -> None:
    """Replaces `path` by one rename: readers see the old record or the new one.

    There is no fsync. If the machine crashes, the checksum tells what did not reach the disk.

    Raises:
        OSError: it cannot be written; `path` is as before.
    """
    text = json.dumps(value, sort_keys=True)
    fd, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)  # readable by its owner
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{text}\n{_checksum(text)}\n")
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_record(path: Path) -> Any:
    """The value that was written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    text, checksum, rest = path.read_bytes().decode().split("\n")
    if rest or checksum != _checksum(text):
        raise ValueError(f"{path.name} does not match its checksum")
    return json.loads(text)


def _checksum(text: str) -> str:
    return blake3.blake3(text.encode()).hexdigest()


class Records:
    """The records in one folder, by key. The time of a file is that of its last use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Any:
        """The value of `key`; None if there is none, or it is damaged."""
        path = self._path(key)
        try:
            value = read_record(path)
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return value

    def write(self, key: str, value: Any) -> None:
        """Sets the value of `key`. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_record(self._path(key), value)

    def paths(self) -> list[Path]:
        """The files of all records."""
        return list(self.folder.glob("*.json"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
