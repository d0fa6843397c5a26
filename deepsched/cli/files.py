"""What subcommands write: files that take their place when they are whole, and JSON."""

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
    """What `option` names, if it was given, to be written as `writing` does."""
    path = getattr(args, option)
    if not path:
        yield None
        return
    with writing(path, f"--{option}") as text:
        yield text


@contextmanager
def writing(path: str, option: str) -> Iterator[TextIO]:
    """Text for a file, which takes the place of what is at `path` when the block has ended well.

    Until then what is there stays: neither Ctrl-C nor an error leaves half a file, or an empty one.
    Whether it can be written is known when the block begins. What is not a regular file, such as
    /dev/stdout or a FIFO, is written to as it is.

    Raises:
        OptionError: it cannot be written, before or after the block; names `option`.
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
    """A file beside the one that it replaces, or one that is written to as it is."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._beside: str | None = None
        mode = _mode(path)
        if mode is not None and (_is_device(path) or not stat.S_ISREG(mode)):
            # stdout itself, where that is meant: opened anew, the two would write over each other.
            same: str | int = os.dup(1) if _is_stdout(path) else path
            self._file = open(same, "w", encoding="utf-8")  # noqa: SIM115
            return
        if mode is not None:
            os.close(os.open(self._path, os.O_WRONLY))  # a file that must not be written stays
        beside = os.path.join(
            os.path.dirname(self._path), f".{os.path.basename(self._path)}.{os.getpid()}"
        )
        try:  # of this user's umask, as the file itself would be
            self._file = open(beside, "w", encoding="utf-8")  # noqa: SIM115
        except OSError:
            if mode is None:
                raise
            self._file = open(self._path, "r+", encoding="utf-8")  # noqa: SIM115
            return  # a folder that takes no other files
        self._beside = beside
        if mode is not None:
            with suppress(OSError):  # a file system without modes
                os.chmod(beside, stat.S_IMODE(mode))

    def write(self, text: str) -> None:
        """All of it; then the file is in its place."""
        if self._beside is None:
            sys.stdout.flush()  # if it is that: in the order that it was written in
        self._file.write(text)
        if self._file.mode == "r+":
            self._file.truncate()
        self._file.close()
        if self._beside is not None:
            os.replace(self._beside, self._path)
            self._beside = None

    def close(self) -> None:
        """Leaves nothing behind of what was not written to its end."""
        with suppress(OSError):  # what could not be written cannot be flushed either
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
    """/dev/stdout may lead to a regular file, which this process holds open all the same."""
    return os.path.abspath(path).startswith(("/dev/", "/proc/"))


def _is_stdout(path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:  # stdout is closed
        return False


def check_distinct(args: argparse.Namespace, *options: str) -> None:
    """
    Raises:
        OptionError: two of these options name one file.
    """
    seen: dict[str, str] = {}
    for option in options:
        path = getattr(args, option)
        if not path or _is_device(path):
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise OptionError(f"--{other} and --{option} both name {path!r}; give two files")


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON that every reader takes: NaN and Infinity are none."""
    return json.dumps(value, indent=indent, allow_nan=False)
