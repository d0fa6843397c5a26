"""Small JSON files: replaced atomically, and read only if intact."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from typing import Any

import blake3

from deepsched.models.folders import Folder

_TEMPORARY = re.compile(r"\.tmp-[0-9a-z_]{8,16}")
"""A file that is being written, locked by its writer."""

_RECORD = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{64})\.json")


def write_record(folder: Folder, name: str, value: Any) -> None:
    """Replaces a record by one rename: readers see the old one or the new one.

    There is no fsync. If the machine crashes, the checksum tells what did not reach the disk.

    Raises:
        OSError: it cannot be written; the record is as before.
    """
    text = json.dumps(value, sort_keys=True)
    replace_file(folder, name, f"{text}\n{_checksum(text)}\n".encode())


def read_record(folder: Folder, name: str) -> Any:
    """The value that was written.

    Raises:
        OSError: it cannot be read, or others than this user may change it.
        ValueError: it is damaged.
    """
    with open(folder.open_file(name), "rb") as file:
        text, checksum, rest = file.read().decode().split("\n")
    if rest or checksum != _checksum(text):
        raise ValueError(f"{name} does not match its checksum")
    return json.loads(text)


def replace_file(folder: Folder, name: str, content: bytes) -> None:
    """Writes a file that only its owner may read, by one rename. Raises OSError."""
    temporary, fd = _make_temporary(folder)
    try:
        with open(fd, "wb", buffering=0) as file:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
            os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder.fd)
        raise


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `replace_file` gives while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep_temporary_files(folder: Folder) -> None:
    """Removes what killed writers left: the kernel has released their locks."""
    for name in filter(is_temporary, folder.names()):
        with contextlib.suppress(OSError):  # being written, or removed by another process
            fd = folder.open_file(name)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=folder.fd)
            finally:
                os.close(fd)


def _make_temporary(folder: Folder) -> tuple[str, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        name = f".tmp-{secrets.token_hex(8)}"
        fd = os.open(name, flags, 0o600, dir_fd=folder.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return name, fd
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder.fd)
            raise
        os.close(fd)  # swept before we had it locked


def _checksum(text: str) -> str:
    return blake3.blake3(text.encode()).hexdigest()


def holds_other_files(folder: Folder) -> bool:
    """Whether anything but records, complete or not, is in the folder."""
    return not all(_RECORD.fullmatch(name) or is_temporary(name) for name in folder.names())


class Records:
    """The records in one folder, by key. The time of a file is that of its last use."""

    def __init__(self, parent: Folder, name: str) -> None:
        self.path = parent.path / name
        self._parent = parent
        self._name = name

    def read(self, key: str) -> Any:
        """The value of `key`; None if there is none, or it is damaged."""
        try:
            folder = self.open()
            value = read_record(folder, f"{key}.json")
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(f"{key}.json", dir_fd=folder.fd, follow_symlinks=False)
        return value

    def write(self, key: str, value: Any) -> None:
        """Sets the value of `key`. Raises OSError."""
        write_record(self.open(makes=True), f"{key}.json", value)

    def names(self) -> list[str]:
        """The files of all records; what else may be there does not count."""
        try:
            return [name for name in self.open().names() if _RECORD.fullmatch(name)]
        except OSError:
            return []

    def remove(self, name: str) -> bool:
        """Removes a record, which nobody keeps open; False if that fails."""
        try:
            folder = self.open()
            os.close(folder.open_file(name))  # a file, and ours
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def remove_folder(self) -> None:
        """If it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self._name, dir_fd=self._parent.fd)

    def sweep(self) -> None:
        """Removes what killed writers left."""
        with contextlib.suppress(OSError):
            sweep_temporary_files(self.open())

    def open(self, makes: bool = False) -> Folder:
        """Its folder. Raises OSError."""
        return self._parent.open_folder(self._name, makes)
