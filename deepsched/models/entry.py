"""An entry of the cache: a folder with a compiled model, its checksums and its lock.

A process that uses the folder holds a shared `flock` on it; one that removes it needs the exclusive
lock. The kernel releases the locks of a killed process, so what it leaves behind is recognised by
being unlocked. The folder is its own lock file: another one could not be removed without a race.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import blake3

from deepsched.models.records import read_record, write_record

_ABOUT = "about.json"
_CHECKED = "checked.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

GRACE_S = 60.0
"""What is unlocked but younger than this may belong to a process that is about to lock it: making a
folder and locking it are two steps."""


class Damaged(Exception):
    """An entry differs from what was sealed."""


class Entry:
    """A locked folder: nobody removes it until `close`."""

    def __init__(self, folder: Path, lock_fd: int) -> None:
        self.folder = folder
        self.about: dict[str, Any] = {}
        """What the process that compiled the model tells those that open it; JSON."""
        self._lock_fd = lock_fd

    @property
    def key(self) -> str:
        """The key that the cache finds it by, once it is published."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The graph; its initializers are in `weights`."""
        return self.folder / "model.onnx"

    @property
    def weights(self) -> Path:
        """Initializers, and what kernels packed them into, ready to be mapped."""
        return self.folder / "weights"

    def seal(self) -> None:
        """Writes `about` and the checksums of the files. Nothing changes in the entry after that,
        but for checked.json."""
        sums = {}
        for path in (self.model, self.weights):
            if path.exists():  # a model of small tensors has no weights file
                path.chmod(0o600)
                sums[path.name] = [path.stat().st_size, hash_file(path)]
        write_record(self.folder / _ABOUT, {**self.about, "files": sums})

    def verify(self) -> None:
        """Compares the files with what was sealed, and reads `about`.

        Reading every byte takes longer than opening the model. So checked.json notes which files
        were found intact (by inode, size and times), and they are read again only if they have
        been written to since, or the machine was restarted: what was written before a crash may not
        have reached the disk.

        Raises:
            Damaged: something differs, or is missing.
        """
        try:
            self.about = read_about(self.folder)
            sums = self.about.pop("files")
            states = [_BOOT_ID, *([name, *_state(self.folder / name)] for name in sorted(sums))]
            if self._was_verified(states):
                return
            for name, (size, checksum) in sums.items():
                path = self.folder / name
                if path.stat().st_size != size or hash_file(path) != checksum:
                    raise Damaged(f"{name} does not match its checksum")
            self._note_verified(states)
        except (OSError, ValueError) as error:
            raise Damaged(str(error)) from error

    def _was_verified(self, states: list[Any]) -> bool:
        try:
            return bool(read_record(self.folder / _CHECKED) == states)
        except (OSError, ValueError):
            return False

    def _note_verified(self, states: list[Any]) -> None:
        # Two writes in quick succession may leave the same times: the kernel's clock for files
        # ticks every 10 ms or faster. Files this young are read again by the next process.
        newest = max(state[-1] for state in states[1:])
        if time.time_ns() - newest < 100_000_000:
            return
        with contextlib.suppress(OSError):  # a read-only cache is verified at each start
            write_record(self.folder / _CHECKED, states)

    def close(self) -> None:
        """Releases the lock. May be called again."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def read_about(folder: Path) -> dict[str, Any]:
    """What `Entry.seal` wrote. Raises OSError, or ValueError if it is damaged."""
    about: dict[str, Any] = read_record(folder / _ABOUT)
    return about


def lock_shared(folder: Path) -> Entry | None:
    """The entry in `folder`, in use by this process too; None if there is none.

    Raises:
        OSError: the file system has no such locks.
    """
    return _lock(folder, fcntl.LOCK_SH)


def lock_exclusive(folder: Path) -> Entry | None:
    """The entry in `folder`, to be removed; None if there is none, or it is in use.

    Raises:
        OSError: the file system has no such locks.
    """
    return _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_locked_folder(parent: Path, prefix: str) -> Entry:
    """A new, empty folder of this user's, locked. Raises OSError."""
    while True:
        entry = lock_shared(Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))
        if entry is not None:  # else `remove_stale` in another process was faster
            return entry


def remove_stale(folder: Path, grace_s: float = GRACE_S) -> None:
    """Removes a staging folder if the process that made it has ended."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < grace_s:
            return
    entry = lock_exclusive(folder)
    if entry is not None:
        shutil.rmtree(folder, ignore_errors=True)
        entry.close()


def hash_file(path: Path | str) -> str:
    """The BLAKE3 checksum of a file's content.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe may never end.
    """
    hasher = blake3.blake3()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{os.fspath(path)!r} is not a regular file")
    with open(path, "rb", buffering=0) as file:
        # Read, not mapped: the pages of a mapping would count as this process's memory.
        buffer = memoryview(bytearray(2**20))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def _lock(folder: Path, operation: int) -> Entry | None:
    while True:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, operation)
            locked, current = os.fstat(fd), os.stat(folder)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return None
        except BaseException:  # Ctrl-C while another process removes the folder
            os.close(fd)
            raise
        # Between open and flock the folder may have been removed, and another one published under
        # its name: then we hold the lock of the old one.
        if (locked.st_dev, locked.st_ino) == (current.st_dev, current.st_ino):
            return Entry(folder, fd)
        os.close(fd)


def _state(path: Path) -> list[int]:
    """Changes whenever the file is replaced or written to."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
