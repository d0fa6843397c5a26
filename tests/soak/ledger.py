"""What happened: how often, and what should not have."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

_MOST_SHOWN = 50


class Ledger:
    """Counts and breaches of a whole soak. Any thread may write; a forked child may not."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.breaches: list[str] = []
        self.skipped: dict[str, str] = {}
        """By fault: why it cannot be made here."""
        self.warnings: dict[str, str] = {}
        """The last that was logged, by the words that they have in common."""
        self.round = 0
        self._lock = threading.Lock()

    def count(self, what: str, number: int = 1) -> None:
        """Something that may happen has happened."""
        with self._lock:
            self.counts[what] += number

    def breach(self, what: str) -> None:
        """Something has happened that must not."""
        with self._lock:
            self.breaches.append(f"round {self.round}: {what}")
            if len(self.breaches) <= _MOST_SHOWN:
                print("BREACH:", self.breaches[-1], file=sys.stderr, flush=True)

    def skip(self, fault: str, why: str) -> None:
        """A fault cannot be made here."""
        with self._lock:
            self.skipped[fault] = why

    def guarded(self, what: str, body: Callable[..., Any], *arguments: Any) -> None:
        """Runs `body`; whatever it raises is a breach."""
        try:
            body(*arguments)
        except BaseException:
            self.breach(f"{what}: {traceback.format_exc()}")

    def thread(self, what: str, body: Callable[..., Any], *arguments: Any) -> threading.Thread:
        """A thread that has been started with `guarded`."""
        thread = threading.Thread(target=self.guarded, args=(what, body, *arguments), name=what)
        thread.start()
        return thread


class Tally:
    """How the calls of one engine ended, as their callers saw it.

    A call is *certain* if it was accepted for sure, and so counted as one request. The others may
    have ended before: refused by a close, cancelled or expired before there was room.
    """

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.num_certain = 0
        self.num_uncertain = 0
        self._lock = threading.Lock()

    def note(self, end: str, is_certain: bool, number: int = 1) -> None:
        """Calls have ended so."""
        with self._lock:
            self.ends[end] += number
            if end == "rejected":
                return
            if is_certain:
                self.num_certain += number
            else:
                self.num_uncertain += number
