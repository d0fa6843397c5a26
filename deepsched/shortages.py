"""One error where there is no room for one more thread, or file."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from deepsched.errors import DeepschedError, FileLimitError, ThreadError


@contextlib.contextmanager
def thread_errors(what: str) -> Iterator[None]:
    """Python's own threads, and those of others' code, raise a bare RuntimeError. `what`: what
    the thread is for, after "could not start"."""
    try:
        yield
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise ThreadError(
            errno.EAGAIN,
            f"could not start {what}: {error}. A container limits threads by pids.max, a user by "
            "RLIMIT_NPROC",
        ) from error


def check_file_limit(error: OSError) -> None:
    """Raises FileLimitError if that is what `error` says, and not that a file is not there."""
    if isinstance(error, DeepschedError) or error.errno not in (errno.EMFILE, errno.ENFILE):
        return
    raise FileLimitError(
        error.errno,
        f"could not open {error.filename or 'a file'}: {error.strerror}. Opening a model takes "
        "some ten descriptors; ulimit -n (RLIMIT_NOFILE) says how many a process may have",
    ) from error


@contextlib.contextmanager
def file_limit_errors() -> Iterator[None]:
    """The same of any OSError that comes out of the block."""
    try:
        yield
    except OSError as error:
        check_file_limit(error)
        raise
