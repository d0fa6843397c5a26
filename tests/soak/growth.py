"""What this process holds: the same after each round as after the first."""

from __future__ import annotations

import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from deepsched.context import open_contexts
from deepsched.models.locations import SHARED_MEMORY, sweep_temporary_folders
from tests.soak.fleet import wait_until
from tests.soak.ledger import Ledger
from tests.soak.main_thread import OPENINGS_STRUCK

MOST_GROWTH_BYTES = 32 << 20
"""Of anonymous memory, by the median of the last third of the rounds against that of the first,
when each has 5 rounds or more. glibc keeps an arena for each of up to 8 x cores threads, of which
each may grow to what the worst round has left in it; a leak of one request's arrays would be more
within minutes."""

_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Holdings:
    """What must not grow at all."""

    threads: tuple[str, ...]
    files: tuple[str, ...]
    children: tuple[int, ...]
    in_memory: tuple[str, ...]
    temporary: tuple[str, ...]
    contexts: tuple[str, ...]

    def more_than(self, other: Holdings, num_files: int) -> list[str]:
        """What this has and the other has not, in words; `num_files` more files do not count."""
        return [
            f"{name}: {len(getattr(other, name))} before, now {getattr(self, name)}"
            for name in self.__dataclass_fields__
            if len(getattr(self, name)) - num_files * (name == "files") > len(getattr(other, name))
        ]


def holdings() -> Holdings:
    """Of this process. /dev/shm and the folder for temporary files must be its own."""
    process = psutil.Process()
    return Holdings(
        tuple(sorted(_name(task) for task in os.listdir("/proc/self/task"))),
        tuple(sorted(filter(None, map(_target, os.listdir("/proc/self/fd"))))),
        tuple(child.pid for child in process.children()),
        tuple(sorted(os.listdir(SHARED_MEMORY))),
        tuple(sorted(os.listdir(tempfile.gettempdir()))),
        tuple(map(repr, open_contexts())),
    )


def _name(task: str) -> str:
    try:
        return Path(f"/proc/self/task/{task}/comm").read_text().strip()
    except OSError:  # it has just ended
        return "ended"


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # that of the listing itself
        return ""


class Growth:
    """Looks after each round."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._first: Holdings | None = None
        self.anonymous: list[int] = []
        """Bytes after each round."""

    def look(self) -> None:
        """Everything of the round has been closed.

        Of files, as many more may be open as openings of engines were ended by a signal: its
        exception may come between `os.open` and what is to hold the number.
        """
        gc.collect()
        sweep_temporary_folders()  # those of children that were killed
        if self._first is None:
            self._first = holdings()
            if self._first.contexts:
                self._ledger.breach(f"left open: {self._first.contexts}")
        first = self._first
        num_files = self._ledger.counts[OPENINGS_STRUCK]
        # A thread that has been joined is in /proc for a moment more.
        if not wait_until(lambda: not holdings().more_than(first, num_files)):
            for what in holdings().more_than(first, num_files):
                self._ledger.breach(f"more than after the first round of {what}")
            self._first = holdings()  # said once
        status = Path("/proc/self/status").read_text()
        self.anonymous.append(int(status.split("RssAnon:")[1].split()[0]) << 10)

    def judge(self) -> None:
        """At the end."""
        third = len(self.anonymous) // 3
        if third < _LEAST_ROUNDS:
            return
        before, after = (np.median(it) for it in (self.anonymous[:third], self.anonymous[-third:]))
        if after - before > MOST_GROWTH_BYTES:
            self._ledger.breach(
                f"anonymous memory grew from {before / 1e6:.1f} MB (median of the first "
                f"{third} rounds) to {after / 1e6:.1f} MB (of the last)"
            )
