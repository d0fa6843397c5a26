"""Leases: cores that one process has for itself, and who has which.

What is promised, and by whom: no two live processes that share a lease file have a lease on one
CPU (the kernel's locks); within a process, neither have two leases (the book that is kept here); a
CPU is free again as soon as its lease is closed or its process has ended, however it ended.

Choosing and locking are one step, since only the holder of the "allocating" byte does either: so
nobody is left with half of what was free, and who marks cores as used and who leases them see one
another. Nothing that a finalizer or a signal handler may interrupt (`close`) waits for it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deepsched.errors import LeaseError
from deepsched.formatting import counted, printable, shortened
from deepsched.machine.lease_choice import choose_cores
from deepsched.machine.lease_file import LeaseFile, Lock
from deepsched.machine.partition import most_cores
from deepsched.machine.sysfs import format_cpu_list, read_text
from deepsched.machine.topology import Core, Topology

logger = logging.getLogger("deepsched")

_FIRST_PAUSE_S = 0.0002
_LAST_PAUSE_S = 0.05

# Choosing takes well below a millisecond. Whoever takes longer is stopped, or holds it in malice.
_MAX_ALLOCATING_S = 2.0

_MOST_OF_COMMAND = 60


@dataclass(frozen=True, slots=True)
class Holder:
    """Another process, and the CPUs that it has."""

    pid: int
    """0: in a PID namespace that this process does not see."""
    command: str
    """Its command line; empty if that cannot be read."""
    cpus: tuple[int, ...]
    """OS numbers, ascending."""
    is_lease: bool
    """Whether it has them for itself; else it uses them without a lease."""

    def __str__(self) -> str:
        """
        >>> print(Holder(12, "gunicorn app:app", (0, 1), True))
        process 12 (gunicorn app:app) has a lease on CPU 0-1
        """
        who = f"process {self.pid}" if self.pid else "a process of another PID namespace"
        command = f" ({shortened(printable(self.command), _MOST_OF_COMMAND)})" * bool(self.command)
        what = "has a lease on" if self.is_lease else "uses, without a lease,"
        return f"{who}{command} {what} CPU {format_cpu_list(self.cpus)}"


class Lease:
    """Cores that this process has for itself, or marks as used, until `close`; see take_lease."""

    def __init__(self, book: _Book, cores: tuple[Core, ...], is_lease: bool) -> None:
        self.cores = cores
        """In topology order."""
        self.cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus))
        """OS numbers, ascending, of all their hardware threads."""
        self._book = book
        self._is_lease = is_lease
        self._number = next(book.numbers)

    @property
    def is_closed(self) -> bool:
        """Whether the cores have been given back."""
        return self._number not in self._book.entries

    def close(self) -> None:
        """Gives the cores back. May be called again, by a signal handler or a finalizer too. Does
        nothing in a forked child, whose parent has them."""
        if self._book is _book():
            self._book.remove(self._number)

    def __repr__(self) -> str:
        kind = "Lease on" if self._is_lease else "Mark of"
        state = ", given back" if self.is_closed else ""
        return f"<{kind} CPU {format_cpu_list(self.cpus)}{state}>"

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            self.close()


def take_lease(
    topology: Topology,
    num_cores: int | None = None,
    timeout: float = 0.0,
    beside: Lease | None = None,
) -> Lease:
    """Takes whole cores that no other live process of deepsched has, next to one another.

    Args:
        topology: the budget: this machine as the mask, the cpuset and the quota leave it.
        num_cores: how many; None for all that are free.
        timeout: seconds to wait for cores that others have; 0 raises at once.
        beside: a lease of this process whose cores may be among those taken: its successor. Both
            have these until they are closed.

    Raises:
        StreamConfigError: num_cores is not an integer, or more than the budget.
        LeaseError: too few are free, and stayed so; names who has them. Or there can be no leases
            here.

    Example:
        >>> machine = Topology.detect()
        >>> with take_lease(machine, 1, timeout=30) as lease:
        ...     len(lease.cores), lease.is_closed
        (1, False)
        >>> lease.is_closed
        True
    """
    most = most_cores(topology, num_cores)
    began = time.monotonic()
    pause = _FIRST_PAUSE_S
    while True:
        try:
            found = _book().take(topology, most, num_cores is not None, beside)
        except OSError as error:
            raise _not_here(error) from error
        if isinstance(found, Lease):
            return found
        patience = timeout if found is not None else max(timeout, _MAX_ALLOCATING_S)
        if time.monotonic() - began >= patience:
            raise LeaseError(_too_few(topology, num_cores, timeout, found))
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE_S)


def mark_used(cores: Sequence[Core]) -> Lease | None:
    """Marks cores as used by this process, without a lease: leases of others leave them out.

    None where there is no lease file.
    """
    deadline = time.monotonic() + _MAX_ALLOCATING_S
    try:
        while (mark := _book().mark(tuple(cores), time.monotonic() >= deadline)) is None:
            time.sleep(_FIRST_PAUSE_S)
    except OSError as error:
        logger.info("other processes do not see which cores are used here: %s", error)
        return None
    return mark


def check_lease_file() -> None:
    """Raises LeaseError where the lease file cannot be used: what `holders` then says of nobody is
    no news."""
    try:
        _book().file.who_allocates()
    except OSError as error:
        raise _not_here(error) from error


def holders(cpus: Collection[int] | None = None) -> list[Holder]:
    """Who has which CPUs: other live processes of deepsched with the same lease file.

    Args:
        cpus: look at these only; None for all.

    Returns:
        An entry for each process, two if it has a lease and uses other CPUs without; none where
        there is no lease file.
    """
    try:
        return _holders(_book().file.locks(), cpus)
    except OSError:
        return []


# --- The book -----------------------------------------------------------------------------------


class _Entry(NamedTuple):
    cpus: tuple[int, ...]
    is_lease: bool


class _Book:
    """What this process has; the kernel's locks do not conflict within it.

    `entries` is the truth, changed by single steps of a dict; the locks follow it. So `remove` may
    come between any two lines of `remove` on the same thread: each gives back what nobody has.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.entries: dict[int, _Entry] = {}
        """By the number of the lease, which is not kept alive by it."""
        self.file = LeaseFile()
        self._lock = threading.RLock()
        self._locked: dict[tuple[int, bool], None] = {}
        """(CPU, whether it is a lease) that the kernel may have locked for us: noted before it is
        locked, and until after it is unlocked."""
        self._opened = 0

    def take(
        self, topology: Topology, count: int, is_exact: bool, beside: Lease | None
    ) -> Lease | list[Holder] | None:
        """A lease on `count` cores, or on fewer if not `is_exact`; or those who have too many of
        them; None if another process chooses just now."""
        with self._lock, self.file.allocating() as has_it:
            if not has_it:
                return None
            self._lock_what_was_lost()
            locks = self.file.locks()
            taken = {cpu for lock in locks for cpu in range(lock.first, lock.end)}
            taken.update(cpu for it in self._others(beside) for cpu in it.cpus)
            free = [core for core in topology.cores if taken.isdisjoint(core.cpus)]
            own = [core for core in free if beside is not None and core in beside.cores]
            left = min(len(free), self._left_of_quota(topology, locks, beside))
            count = count if is_exact else min(count, left)
            if not 0 < count <= left:
                return _holders(locks, None) + [_as_holder(it) for it in self._others(beside)]
            # Fewer than before: of those that it has.
            choice = own if count <= len(own) else free
            lease = Lease(self, choose_cores(topology.cores, choice, count, own), True)
            # Before its locks: remove() gives back what nobody has.
            self.entries[lease._number] = _Entry(lease.cpus, True)
            if not self._lock_all(lease.cpus, True):  # by somebody who did not allocate first
                self.entries.pop(lease._number)
                return _holders(self.file.locks(), lease.cpus)
            return lease

    def mark(self, cores: tuple[Core, ...], at_once: bool) -> Lease | None:
        """None: another process chooses just now, and it need not be `at_once`."""
        with self._lock, self.file.allocating() as has_it:
            if not has_it and not at_once:
                return None
            self._lock_what_was_lost()
            mark = Lease(self, cores, False)
            self.entries[mark._number] = _Entry(mark.cpus, False)
            self._lock_all(mark.cpus, False)
            return mark

    def remove(self, number: int) -> None:
        """Gives back what only that lease had."""
        self.entries.pop(number, None)
        with self._lock:
            wanted = {(cpu, it.is_lease) for it in self._others(None) for cpu in it.cpus}
            for is_lease in (True, False):
                held = [cpu for cpu, kind in list(self._locked) if kind == is_lease]
                idle = [cpu for cpu in held if (cpu, is_lease) not in wanted]
                self.file.unlock(idle, is_lease)
                for cpu in idle:
                    self._locked.pop((cpu, is_lease), None)
            self._lock_what_was_lost()

    def _others(self, beside: Lease | None) -> list[_Entry]:
        own = None if beside is None else beside._number
        return [entry for number, entry in list(self.entries.items()) if number != own]

    def _lock_all(self, cpus: Iterable[int], is_lease: bool) -> bool:
        fresh = [cpu for cpu in cpus if (cpu, is_lease) not in self._locked]
        self._locked.update(dict.fromkeys((cpu, is_lease) for cpu in fresh))
        if self.file.try_lock(fresh, is_lease):
            return True
        for cpu in fresh:
            self._locked.pop((cpu, is_lease), None)
        return False

    def _lock_what_was_lost(self) -> None:
        """Where something has closed the descriptor, as programs do that close all they do not
        know, the locks went with it, and the file has been opened anew."""
        if self._opened == self.file.num_opened:
            return
        is_first, self._opened = self._opened == 0, self.file.num_opened
        if is_first:
            return
        lost = [cpu for cpu, kind in list(self._locked) if not self.file.try_lock([cpu], kind)]
        logger.warning(
            "something in this process has closed the descriptor of its leases of cores, which "
            "gave them back; they have been taken again%s",
            f", but for CPU {format_cpu_list(lost)}, which others have now" if lost else "",
        )

    def _left_of_quota(
        self, topology: Topology, locks: Iterable[Lock], beside: Lease | None
    ) -> int:
        """How many cores more the quota has time for, beside the leases of the same cgroup."""
        if topology.cpu_quota is None:
            return len(topology.cores)
        own_group = read_text(Path("/proc/self/cgroup"))
        cpus = {
            cpu
            for lock in locks
            if lock.is_lease and read_text(Path(f"/proc/{lock.pid}/cgroup")) == own_group
            for cpu in range(lock.first, lock.end)
        }
        cpus.update(cpu for it in self._others(beside) if it.is_lease for cpu in it.cpus)
        num_leased = sum(not cpus.isdisjoint(core.cpus) for core in topology.cores)
        return math.ceil(topology.cpu_quota) - num_leased


_books: dict[int, _Book] = {}
"""By process: a forked child has none of its parent's locks."""


def _book() -> _Book:
    pid = os.getpid()
    return _books.get(pid) or _books.setdefault(pid, _Book())


# A child may have the number of its parent, in a PID namespace of its own, or of an ancestor.
os.register_at_fork(after_in_child=lambda: _books.clear())


# --- Words --------------------------------------------------------------------------------------


def _holders(locks: Iterable[Lock], cpus: Collection[int] | None) -> list[Holder]:
    found: dict[tuple[int, bool], set[int]] = {}
    for lock in locks:
        held = set(range(lock.first, lock.end))
        held &= held if cpus is None else set(cpus)
        if held:
            found.setdefault((lock.pid, lock.is_lease), set()).update(held)
    return [
        Holder(pid, _command(pid), tuple(sorted(held)), is_lease)
        for (pid, is_lease), held in sorted(found.items())
    ]


def _as_holder(entry: _Entry) -> Holder:
    return Holder(os.getpid(), "this one", entry.cpus, entry.is_lease)


def _command(pid: int) -> str:
    words = (read_text(Path(f"/proc/{pid}/cmdline")) or "").split("\0") if pid else []
    return " ".join(words).strip()


def _not_here(error: OSError) -> LeaseError:
    return LeaseError(
        f"leases of cores cannot be had here: {error}. DEEPSCHED_LEASE_DIR= names a folder for the "
        "lease file, which all processes that are to see one another have to share"
    )


def _too_few(
    topology: Topology, num_cores: int | None, timeout: float, others: Sequence[Holder] | None
) -> str:
    wanted = "a core" if num_cores is None else counted(num_cores, "core")
    waited = f" within {timeout:g} s" if timeout else ""
    if others is None:
        pid = _book().file.who_allocates()
        who = f"process {pid}" if pid else "another process"
        return f"no lease on {wanted} can be had: {who} does not end choosing its own"
    quota = topology.cpu_quota
    limit = "" if quota is None else f", for which its CPU quota is {quota:g} cores in all,"
    return (
        f"too few of the {counted(len(topology.cores), 'core')} of this process{limit} are free "
        f"for a lease on {wanted}{waited}: {'; '.join(map(str, others))}. lease_timeout= waits for "
        "them, a smaller num_cores= takes what is left, cores='share' takes them all the same; "
        "`deepsched lease list` shows who has what"
    )
