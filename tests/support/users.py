"""Attackers: another user's process, beside the test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import tempfile
import warnings
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

OTHER = 54321
"""A uid that nobody has."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one, other):
    """Swaps two names in one step; False if that is not allowed, or one is not there."""
    paths = (os.fsencode(one), os.fsencode(other))
    return _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def attacking(attack, uid=OTHER):
    """Calls `attack` again and again, in a process of that user (None: of this one), until the
    block's end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the child runs no Python code of other threads
        pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            while os.getppid() != 1:
                attack()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def give_to(path, uid=OTHER):
    """Makes `path` and all in it another user's."""
    for folder, _, files in os.walk(path):
        os.lchown(folder, uid, uid)
        for name in files:
            os.lchown(os.path.join(folder, name), uid, uid)


@pytest.fixture
def public():
    """A folder that every user can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)
