"""The output of subcommands: files that are replaced atomically, and JSON."""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from deepsched.cli.interrupts import unwinds_on_sigterm
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
    """What replaces a file, by a rename; or the file itself, written in place."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._in_place: TextIO | None = None
        self._mode = _mode(path)
        if self._mode is not None and (_is_device(path) or not stat.S_ISREG(self._mode)):
            # If it is our stdout, share its file offset: with one of its own, each would overwrite
            # what the other wrote.
            self._in_place = _open(os.dup(1) if _is_stdout(path) else path, "w")
            return
        if self._mode is not None:
            os.close(os.open(self._path, os.O_WRONLY))  # a rename would replace a read-only file
        try:
            with _beside(self._path):
                pass  # kill -9 leaves nothing while the block runs
        except OSError:
            if self._mode is None:
                raise
            self._in_place = _open(self._path, "r+")  # no files can be created in its folder

    def write(self, text: str) -> None:
        """Writes all of it, then renames the file."""
        if self._in_place is not None:
            sys.stdout.flush()  # it may be the same file: keep the order
            self._in_place.write(text)
            if self._in_place.mode == "r+":
                self._in_place.truncate()
            self._in_place.close()
            return
        with _beside(self._path) as (beside, file):
            if self._mode is not None:
                with suppress(OSError):  # a file system without modes
                    os.fchmod(file.fileno(), stat.S_IMODE(self._mode))
            file.write(text)
            file.close()
            os.replace(beside, self._path)

    def close(self) -> None:
        """Closes a file that is written in place."""
        if self._in_place is not None:
            with suppress(OSError):  # after a failed write, close flushes and fails again
                self._in_place.close()


@contextmanager
def _beside(path: str) -> Iterator[tuple[str, TextIO]]:
    """The name of a new file in the same folder, which is gone after the block, and the file."""
    # Random, and O_EXCL: in a shared folder others could plant a symlink. Not tempfile, whose files
    # ignore the umask. The name is not made from the path's, which may be as long as names can be.
    beside = os.path.join(os.path.dirname(path), f".deepsched-{secrets.token_hex(8)}")
    with unwinds_on_sigterm():
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            file = _open(os.open(beside, flags, 0o666), "w")
            try:
                yield beside, file
            finally:
                with suppress(OSError):  # after a failed write, close flushes and fails again
                    file.close()
        finally:
            with suppress(OSError):
                os.unlink(beside)


def _open(file: str | int, mode: str) -> TextIO:
    # backslashreplace: a path that is not UTF-8 must not cost the measurement.
    return cast(TextIO, open(file, mode, encoding="utf-8", errors="backslashreplace"))


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
