"""Hashes of files, remembered for as long as the file's inode says that nobody has written to it.

Reading a large model takes many times as long as opening its compiled form. A hash is remembered
with the file's state: device, inode, size, mtime and ctime in ns. No program can set the ctime, so
whatever is done to a file leaves another state, provided that

* the file system keeps times that way: a few local ones are known to (see keeps_times). Others
  take the ctime from an image, count whole seconds, or are written to by other machines;
* the last change lies a while back. Two changes within one tick of the kernel's clock may leave the
  same time; git calls such files racily clean;
* no mapping can write unnoticed. The kernel notes a time when a page is first written to through a
  mapping; until that page has been written back, further writes to it leave no trace;
* the machine was not restarted since: what was written before a crash may not have reached the
  disk, though the inode did.

A file that does not meet all of these is read each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import blake3

from deepsched.models.folders import is_overlay, keeps_times
from deepsched.models.records import Records

logger = logging.getLogger("deepsched")

_TICK_NS = 100_000_000
"""More than a tick of the kernel's clock for files, which is 10 ms or less."""

_WRITTEN_BACK_NS = 60_000_000_000
"""The kernel begins to write pages back after 30 s, so after this time there is little left."""


class FileHashes:
    """Hashes of files, kept in records."""

    def __init__(self, records: Records, kind: str) -> None:
        """`kind`: what each record says that it is."""
        self._records = records
        self._kind = kind

    def of(self, path: Path | str) -> tuple[str, list[int]]:
        """The BLAKE3 checksum of a file's content, and the file's state when it was opened.

        Raises:
            OSError: it cannot be read, or is no regular file: a pipe may never end.
        """
        now_ns = time.time_ns()
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe has no reader yet
        with open(fd, "rb", buffering=0) as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{os.fspath(path)!r} is not a regular file")
            state = file_state(found)
            if not boot_id() or found.st_ctime_ns % 1_000_000_000 == 0 or not keeps_times(fd):
                return hash_content(file), state
            key = blake3.blake3(f"{found.st_dev} {found.st_ino}".encode()).hexdigest()[:32]
            circumstances = {"boot": boot_id(), "state": state}
            if (known := self._read(key, circumstances)) is not None:
                return known, state
            is_at_rest = _is_at_rest(fd, state, now_ns)
            checksum = hash_content(file)
            # A write since `is_at_rest` has left a time of now: another state, as this is none.
            if is_at_rest and file_state(os.fstat(fd)) == state:
                about = {"kind": self._kind, "model": os.path.abspath(path), "checksum": checksum}
                with contextlib.suppress(OSError):  # it is read again next time
                    self._records.write(key, {**about, **circumstances})
            return checksum, state

    def _read(self, key: str, circumstances: Mapping[str, object]) -> str | None:
        record = self._records.read(key)
        if not isinstance(record, dict) or not circumstances.items() <= record.items():
            return None
        checksum = record.get("checksum")
        return checksum if isinstance(checksum, str) else None


def _is_at_rest(fd: int, state: list[int], now_ns: int) -> bool:
    """Whether every write from here on leaves another state. `now_ns`: before `state` was read."""
    if is_young(state, now_ns):
        return False
    # An overlay does not count the writers of the file underneath.
    if not is_overlay(fd) and (has_writer := _has_writer(fd)) is not None:
        return not has_writer
    if is_young(state, now_ns, _WRITTEN_BACK_NS):
        return False  # all of a new model might have to be written, which may take long
    try:
        os.fdatasync(fd)  # after that, the first write to a page leaves a time again
    except OSError:
        return False
    return True


def _has_writer(fd: int) -> bool | None:
    """Whether anybody has the file open for writing, or mapped; None if the kernel does not say.

    It grants a read lease only if nobody has; to the file's owner, and on local file systems.
    """
    # Whoever opens the file for writing while there is a lease waits until it is returned, and we
    # get a signal: by default SIGIO, which would end the process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def file_state(found: os.stat_result) -> list[int]:
    """Changes whenever the file is replaced or written to."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def is_young(state: list[int], now_ns: int, age_ns: int = _TICK_NS) -> bool:
    """Whether a file was changed within `age_ns` of now, so that another change may leave the same
    state; also if its times lie in the future."""
    return now_ns - max(state[-2:]) < age_ns


def hash_content(file: IO[bytes]) -> str:
    """The BLAKE3 checksum of what is left to read, 64 hex digits. Raises OSError."""
    hasher = blake3.blake3()
    # Read, not mapped: the pages of a mapping would count as this process's memory.
    buffer = memoryview(bytearray(2**20))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        hasher.update(buffer[:count])
    return hasher.hexdigest()


@functools.cache
def boot_id() -> str:
    """Differs after each start of the machine; empty where /proc does not tell, which is logged
    once."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        if os.path.isdir("/proc/self"):  # else nothing is kept at all, which is said elsewhere
            logger.warning(
                "models and their compiled forms are read in full at each start, since this system "
                "does not tell when it was booted: %s",
                error,
            )
        return ""
