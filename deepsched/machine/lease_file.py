"""The file of leases: a byte for each CPU, locked by the process that has it.

Locks are fcntl's byte ranges (fcntl(2), "Advisory record locking"): the kernel gives them back when
their process ends, however it ends, also where a forked child lives on, which would keep a `flock`.
They have three traps. Closing any descriptor of the file drops all of the process's locks on it: so
there is one descriptor, which is never closed and given to nobody. They do not conflict within a
process: leases.py keeps book. And a file that is removed while somebody has it locked would be made
anew beside it: so it stays for ever, empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from deepsched.machine.sysfs import MAX_CPUS, read_text

logger = logging.getLogger("deepsched")

NAME = "deepsched.cores"

_ALLOCATING = 3 * MAX_CPUS
"""The byte that is held while CPUs are chosen."""

_LISTED = re.compile(
    r"[0-9]+: +POSIX +[A-Z]+ +[A-Z]+ +(?P<pid>-?[0-9]{1,10}) (?P<device>[0-9a-f:]+) "
    r"(?P<first>[0-9]{1,19}) (?P<last>[0-9]{1,19})",
    re.ASCII,
)
"""A line of /proc/locks: a lock that is held, and that ends."""

_FLOCK = "hhqqi4x"  # struct flock: l_type, l_whence, l_start, l_len, l_pid


class Lock(NamedTuple):
    """A lock of another process."""

    pid: int
    """0: it lives in another PID namespace."""
    first: int
    end: int
    """CPUs from `first` to `end` - 1."""
    is_lease: bool
    """Whether it is held alone; else the CPUs are used, and others may use them too."""


class LeaseFile:
    """The file, opened when it is first needed.

    Raises:
        OSError: all methods; there is no folder for it, or its file system has no such locks.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._identity = (0, 0)
        self._opening = threading.RLock()  # a finalizer may come between
        self.num_opened = 0
        """How often the file has been opened: more than once if something else closed it."""

    def try_lock(self, cpus: Iterable[int], is_lease: bool) -> bool:
        """Locks all of `cpus` or, if another process has one of them, none."""
        kind = fcntl.F_WRLCK if is_lease else fcntl.F_RDLCK
        done: list[int] = []
        for first, end in _runs(cpus):
            if not self._set(kind, _offset(first, is_lease), end - first):
                self.unlock(done, is_lease)
                return False
            done += range(first, end)
        return True

    def unlock(self, cpus: Iterable[int], is_lease: bool) -> None:
        """Gives back locks of this process."""
        for first, end in _runs(cpus):
            self._set(fcntl.F_UNLCK, _offset(first, is_lease), end - first)

    @contextlib.contextmanager
    def allocating(self) -> Iterator[bool]:
        """Whether this process is the only one that chooses CPUs within the block. One thread at a
        time."""
        try:
            yield self._set(fcntl.F_WRLCK, _ALLOCATING, 1)
        finally:  # if it was not had, too: a signal's exception may have come before that was known
            self._set(fcntl.F_UNLCK, _ALLOCATING, 1)

    def who_allocates(self) -> int | None:
        """Process that chooses CPUs just now."""
        return next((pid for pid, _, _ in self._conflicts(_ALLOCATING, _ALLOCATING + 1)), None)

    def locks(self) -> list[Lock]:
        """Other processes' locks. Of several that share a CPU at least one is among them, and all
        that /proc/locks shows."""
        found = {
            Lock(pid, start - base, end - base, is_lease)
            for is_lease in (True, False)
            for base in (_offset(0, is_lease),)
            for pid, start, end in self._conflicts(base, base + MAX_CPUS)
        }
        return sorted(found | set(self._listed()))

    # --- System calls -------------------------------------------------------------------------

    def _set(self, kind: int, start: int, length: int) -> bool:
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
        fd = self._descriptor()
        try:
            fcntl.fcntl(fd, fcntl.F_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # another process has it
                return False
            raise
        return True

    def _conflicts(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(pid, start, end) of the locks of others, cut to the range. The kernel tells any one of
        those in a range, not the first."""
        waiting = [(start, end)]
        while waiting:
            start, end = waiting.pop()
            request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
            answer = fcntl.fcntl(self._descriptor(), fcntl.F_GETLK, request)
            kind, _, first, length, pid = struct.unpack(_FLOCK, answer)
            if kind == fcntl.F_UNLCK:
                continue
            first, last = max(start, first), min(end, first + length if length else end)
            yield max(pid, 0), first, last
            waiting += [it for it in ((start, first), (last, end)) if it[0] < it[1]]

    def _listed(self) -> Iterator[Lock]:
        """What /proc/locks shows (proc_locks(5)); nothing where it is not readable."""
        status = os.fstat(self._descriptor())
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in (read_text(Path("/proc/locks")) or "").splitlines():
            found = _LISTED.fullmatch(line)
            if found is None or found["device"] != device:
                continue
            pid, start, end = int(found["pid"]), int(found["first"]), int(found["last"]) + 1
            base = start // MAX_CPUS * MAX_CPUS
            if base < _ALLOCATING and pid != os.getpid():
                yield Lock(max(pid, 0), start - base, end - base, base == 0)

    # --- The descriptor -----------------------------------------------------------------------

    def _descriptor(self) -> int:
        if not self._is_ours():
            with self._opening:
                if not self._is_ours():  # nor did another thread open it meanwhile
                    fd = _open()
                    self._identity = _identity(fd)
                    self._fd = fd
                    self.num_opened += 1
        return self._fd

    def _is_ours(self) -> bool:
        try:
            return _identity(self._fd) == self._identity
        except OSError:
            return False


def folders() -> list[Path]:
    """Where the file may be: in the first of these that there is and that lets us."""
    if chosen := os.environ.get("DEEPSCHED_LEASE_DIR"):
        return [Path(chosen)]
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [Path("/run/lock"), *([Path(own)] if own else []), Path("/dev/shm")]


def _open() -> int:
    errors, unusable = [], []
    for path in (folder / NAME for folder in folders()):
        try:
            fd = _open_in(path)
        except OSError as error:
            errors.append(error)
            if os.path.lexists(path):
                unusable.append(str(error))
            continue
        if unusable:
            logger.warning(
                "leases of cores are in %s, and those of processes that use another file are not "
                "seen: %s. Remove that, or have all processes use one folder: DEEPSCHED_LEASE_DIR",
                path,
                "; ".join(unusable),
            )
        return fd
    raise errors[0]


def _open_in(path: Path) -> int:
    """For everybody to read and write, since a lock needs both. Closed on exec (PEP 446)."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        # Without O_CREAT first: with it, another user's file in a folder that all may write to is
        # refused (fs.protected_regular).
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, flags)
            break
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(OSError):
                os.fchmod(fd, 0o666)  # whatever the umask says
            break
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)  # no locks are lost: they are the regular file's
        raise OSError(f"'{path}' is not a regular file")
    return fd


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _offset(cpu: int, is_lease: bool) -> int:
    return cpu if is_lease else MAX_CPUS + cpu


def _runs(cpus: Iterable[int]) -> list[tuple[int, int]]:
    """CPUs as ranges, in ascending order."""
    runs: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu:
            runs[-1] = runs[-1][0], cpu + 1
        else:
            runs.append((cpu, cpu + 1))
    return runs
