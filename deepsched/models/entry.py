"""An entry of the cache: a locked folder with a compiled model and its checksums."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepsched.models.file_hashes import boot_id, file_state, hash_content, is_young
from deepsched.models.folders import Folder
from deepsched.models.records import (
    is_temporary,
    read_record,
    sweep_temporary_files,
    write_record,
)

_ABOUT = "about.json"
_CHECKED = "checked.json"
_MODEL = "model.onnx"
_WEIGHTS = "weights"
LARGE_WEIGHTS = "large-weights"
"""The weights of the model that is being compiled; removed before the entry is sealed."""

# These tell of the process or the disk, not of the entry: no descriptors or memory left, a signal,
# an error of the device.
_SHORTAGES = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.EAGAIN, errno.EDQUOT)
)


class Damaged(Exception):
    """An entry differs from what was sealed."""


class Entry:
    """A locked folder: nobody removes it until `close`."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.about: dict[str, Any] = {}
        """What the process that compiled the model tells those that open it; JSON."""

    @property
    def path(self) -> Path:
        """Where it is, for people."""
        return self.folder.path

    @property
    def key(self) -> str:
        """The key that the cache finds it by, once it is published."""
        return self.folder.path.name

    @property
    def model(self) -> Path:
        """The graph; its initializers are in `weights`."""
        return self.folder.inside(_MODEL)

    @property
    def weights(self) -> Path:
        """Initializers, and what kernels packed them into, ready to be mapped."""
        return self.folder.inside(_WEIGHTS)

    def seal(self) -> None:
        """Writes `about` and the checksums of the files. Nothing changes in the entry after that,
        but for checked.json."""
        names = []
        for name in (_MODEL, _WEIGHTS):
            with contextlib.suppress(FileNotFoundError):  # small tensors have no weights file
                os.chmod(self.folder.inside(name), 0o600)
                names.append(name)
        states = self._states(names)
        sums = {name: list(_sum(self.folder, name)) for name in names}
        write_record(self.folder, _ABOUT, {**self.about, "files": sums})
        self._note_verified(states)

    def verify(self, reads_all: bool = False) -> None:
        """Compares the files with what was sealed, and reads `about`.

        Reading every byte takes longer than opening the model. So checked.json notes which files
        were found intact (by inode, size and times), and they are read again only if they have
        been written to since, or the machine was restarted: what was written before a crash may not
        have reached the disk. `reads_all`: also if checked.json says that they are intact.

        Raises:
            Damaged: something differs, is missing, or may be changed by others.
        """
        try:
            self.about = read_about(self.folder)
            sums = self.about.pop("files")
            if not {_MODEL} <= sums.keys() <= {_MODEL, _WEIGHTS}:
                raise Damaged(f"{_ABOUT} lists other files: {sorted(sums)}")
            states = self._states(sums)
            if not reads_all and states[0] and self._was_verified(states):
                return
            for name, known in sums.items():
                if list(_sum(self.folder, name)) != known:
                    raise Damaged(f"{name} does not match its checksum")
            self._note_verified(states)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            raise Damaged(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(str(error)) from error

    def _states(self, names: Iterable[str]) -> list[Any]:
        return [boot_id(), *([name, *self._state(name)] for name in sorted(names))]

    def _state(self, name: str) -> list[int]:
        fd = self.folder.open_file(name)
        try:
            return file_state(os.fstat(fd))
        finally:
            os.close(fd)

    def _was_verified(self, states: list[Any]) -> bool:
        try:
            return bool(read_record(self.folder, _CHECKED) == states)
        except (OSError, ValueError):
            return False

    def _note_verified(self, states: list[Any]) -> None:
        if any(is_young(state, time.time_ns()) for state in states[1:]):
            return  # the next process reads them again
        with contextlib.suppress(OSError):  # a read-only cache is verified at each start
            sweep_temporary_files(self.folder)
            write_record(self.folder, _CHECKED, states)

    def close(self) -> None:
        """Releases the lock. May be called again."""
        self.folder.close()


def read_about(folder: Folder) -> dict[str, Any]:
    """What `Entry.seal` wrote. Raises OSError, or ValueError if it is damaged."""
    about: dict[str, Any] = read_record(folder, _ABOUT)
    return about


def is_entry(folder: Folder) -> bool:
    """Whether a folder holds what `Entry.seal` wrote, and nothing else."""
    with contextlib.suppress(OSError, ValueError):
        return not holds_others(folder) and bool(read_about(folder))
    return False


def holds_others(folder: Folder) -> bool:
    """Whether anything but files of an entry, complete or not, is in the folder."""
    return not all(
        _is_ours(name) and not stat.S_ISDIR(folder.stat(name).st_mode) for name in folder.names()
    )


def remove_entry_files(folder: Folder) -> None:
    """Removes the files of an entry, complete or not, and nothing else. Raises OSError."""
    for name in sorted(folder.names()):  # about.json first: without it the rest is no entry
        if _is_ours(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder.fd)


def num_bytes(folder: Folder) -> int:
    """The size of an entry's files. Raises OSError."""
    return sum(folder.stat(name).st_size for name in folder.names())


def _is_ours(name: str) -> bool:
    return name in (_ABOUT, _CHECKED, _MODEL, _WEIGHTS, LARGE_WEIGHTS) or is_temporary(name)


def _sum(folder: Folder, name: str) -> tuple[int, str]:
    """Size and checksum of a file."""
    fd = folder.open_file(name)
    with open(fd, "rb", buffering=0) as file:
        return os.fstat(fd).st_size, hash_content(file)
