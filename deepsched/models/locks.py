"""Locks on folders: who uses one, and whether who made one still lives.

A process that uses a folder holds a shared `flock` on it; one that removes it needs the exclusive
lock. The kernel releases the locks of a killed process, so what it leaves behind is recognised by
being unlocked. The folder is its own lock file: another one could not be removed without a race.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time

from deepsched.models.folders import Folder

_MAX_WAIT_S = 1.0


def lock_shared(parent: Folder, name: str) -> Folder | None:
    """The folder, in use by this process too; None if there is none.

    Raises:
        OSError: it is no folder, others may change it, or the file system has no such locks.
    """
    return _lock(parent, name, fcntl.LOCK_SH)


def lock_exclusive(parent: Folder, name: str) -> Folder | None:
    """The folder, to be removed; None if there is none, or it is in use.

    Raises:
        OSError: as lock_shared.
    """
    return _lock(parent, name, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_locked_folder(parent: Folder, prefix: str) -> Folder:
    """A new, empty folder of this user's, locked. Raises OSError."""
    while True:
        name = f"{prefix}{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=parent.fd)
        try:
            folder = lock_shared(parent, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent.fd)
            raise
        if folder is not None:  # else a sweep in another process came before the lock
            return folder


def _flock(fd: int, operation: int) -> None:
    """flock without waiting for long: whoever may read a folder may hold its lock for ever, and
    nobody holds the exclusive one for longer than a removal takes."""
    end = time.monotonic() + (0 if operation & fcntl.LOCK_NB else _MAX_WAIT_S)
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.01)


def _lock(parent: Folder, name: str, operation: int) -> Folder | None:
    while True:
        try:
            folder = parent.open_folder(name)
        except FileNotFoundError:
            return None
        try:
            _flock(folder.fd, operation)
        except BlockingIOError:
            return None
        # Between open and flock the folder may have been removed, and another one published under
        # its name: then we hold the lock of the old one.
        if parent.has(name, folder):
            return folder
