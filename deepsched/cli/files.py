"""The output of subcommands: files that are replaced atomically, and JSON."""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from deepsched.errors import OptionError


@contextmanager
def output(args: argparse.Namespace, option: str) -> Iterator[TextIO | None]:
    """Opens the file that `option` names as `writing` does; None if it was not given."""
    path = getattr(args, option)
    if not path:
        yield None
        return
    with writing(path, _flag(option)) as text:
        yield text


@contextmanager
def writing(path: str, option: str) -> Iterator[TextIO]:
    """A buffer whose text replaces the file at `path` when the block succeeds, by a rename.

    Neither Ctrl-C nor an error leaves half a file, or an empty one. A path that cannot be written
    fails before the block runs. Anything but a regular file, such as /dev/stdout or a FIFO, is
    written to in place.

    Raises:
        OptionError: the file cannot be written; names `option`.
    """
    try:
        target = _Target(path)
    except OSError as error:
        raise _cannot_write(option, path, error) from error
    text = io.StringIO()
    try:
        yield text
        try:
            target.write(text.getvalue())
        except OSError as error:
            raise _cannot_write(option, path, error) from error
    finally:
        target.close()


def _cannot_write(option: str, path: str, error: OSError) -> OptionError:
    return OptionError(f"cannot write {option} {path!r}: {error.strerror or error}")


class _Target:
    """A temporary file beside the one that it replaces; or the file itself, written in place."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._beside: str | None = None
        mode = _mode(path)
        if mode is not None and (_is_device(path) or not stat.S_ISREG(mode)):
            # If it is our stdout, share its file offset: with one of its own, each would overwrite
            # what the other wrote.
            same: str | int = os.dup(1) if _is_stdout(path) else path
            self._file = open(same, "w", encoding="utf-8")  # noqa: SIM115
            return
        if mode is not None:
            os.close(os.open(self._path, os.O_WRONLY))  # a rename would replace a read-only file
        beside = os.path.join(
            os.path.dirname(self._path), f".{os.path.basename(self._path)}.{os.getpid()}"
        )
        try:  # not tempfile, whose files ignore the umask
            self._file = open(beside, "w", encoding="utf-8")  # noqa: SIM115
        except OSError:
            if mode is None:
                raise
            self._file = open(self._path, "r+", encoding="utf-8")  # noqa: SIM115
            return  # a folder that this user cannot create files in: no rename, then
        self._beside = beside
        if mode is not None:
            with suppress(OSError):  # a file system without modes
                os.chmod(beside, stat.S_IMODE(mode))

    def write(self, text: str) -> None:
        """Writes all of it, then renames the file."""
        if self._beside is None:
            sys.stdout.flush()  # it may be the same file: keep the order
        self._file.write(text)
        if self._file.mode == "r+":
            self._file.truncate()
        self._file.close()
        if self._beside is not None:
            os.replace(self._beside, self._path)
            self._beside = None

    def close(self) -> None:
        """Removes the temporary file if it was not renamed."""
        with suppress(OSError):  # after a failed write, close flushes and fails again
            self._file.close()
        if self._beside is not None:
            with suppress(OSError):
                os.unlink(self._beside)


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _is_device(path: str) -> bool:
    """/dev/stdout may be a link to a regular file, which must not be replaced: it is open."""
    return os.path.abspath(path).startswith(("/dev/", "/proc/"))


def _is_stdout(path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:  # stdout is closed
        return False


def check_distinct(args: argparse.Namespace, *options: str) -> None:
    """
    Raises:
        OptionError: two of these options name the same file.
    """
    seen: dict[str, str] = {}
    for option in options:
        path = getattr(args, option)
        if not path or _is_device(path):
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise OptionError(
                f"{_flag(other)} and {_flag(option)} both name {path!r}; give two files"
            )


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON: NaN and Infinity are errors."""
    return json.dumps(value, indent=indent, allow_nan=False)


def _flag(dest: str) -> str:
    return "--" + dest.replace("_", "-")
