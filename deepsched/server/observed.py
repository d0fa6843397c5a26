"""Observed: what all versions of all models have counted, closed ones included.

The engines count natively, in histograms that a request pays one add for. They are read when
somebody asks, and nothing is added to a request's way.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepsched.context import Context
from deepsched.server.model_version import ModelVersion

BOUNDS_S = (
    *(10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the published histograms, the same in every instance, so that they add up. The
native buckets are 3 % wide; one that straddles a bound counts where its middle is."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""The same of the number of requests that ran together."""

OUTCOMES = ("done", "failed", "expired", "cancelled", "rejected", "invalid")

Key = tuple[str, str]
"""A model's name and version."""


@dataclass
class Totals:
    """What happened to the requests of one version since the server started."""

    outcomes: Counter[str] = field(default_factory=Counter)
    waiting: Any = field(default_factory=lambda: np.zeros(len(BOUNDS_S) + 1, np.int64))
    """Requests up to each of BOUNDS_S, cumulative; the last: all."""
    waiting_s: float = 0.0
    running: Any = field(default_factory=lambda: np.zeros(len(BOUNDS_S) + 1, np.int64))
    running_s: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    """Runs by the number of requests that ran together."""

    def add(self, other: Totals) -> None:
        """Adds what `other` holds."""
        self.outcomes.update(other.outcomes)
        self.waiting = self.waiting + other.waiting
        self.running = self.running + other.running
        self.waiting_s += other.waiting_s
        self.running_s += other.running_s
        self.batches.update(other.batches)


def totals_of(version: ModelVersion) -> Totals:
    """What one version has counted, by its engine and by itself."""
    counts = version.counts()
    return Totals(
        Counter({**counts.outcomes(), "invalid": version.num_invalid}),
        *counts.cumulative("waiting", BOUNDS_S),
        *counts.cumulative("running", BOUNDS_S),
        Counter(counts.batches()),
    )


class Observed:
    """The versions that have served, and how loads have ended.

    A lock, since a version is opened in one thread and read in another.
    """

    def __init__(self) -> None:
        self.loads: Counter[tuple[str, str]] = Counter()
        """By the model's name, and "done" or "failed"."""
        self._lock = threading.Lock()
        self._open: list[ModelVersion] = []
        self._closed: dict[Key, Totals] = {}
        self._batches: dict[Key, Counter[int]] = {}
        """The highest counts that were published."""

    def opened(self, version: ModelVersion) -> None:
        """A version takes over; its requests count until its engine is closed, and are kept then:
        a counter never goes back."""
        with self._lock:
            self.loads[version.name, "done"] += 1
            self._open.append(version)
            self._fold()

    def load_failed(self, name: str) -> None:
        """A version could not be opened; the one before goes on."""
        with self._lock:
            self.loads[name, "failed"] += 1

    def totals(self) -> dict[Key, Totals]:
        """By name and version, of all there ever were."""
        with self._lock:
            self._fold()
            found: dict[Key, Totals] = {}
            for key, totals in self._closed.items():
                found.setdefault(key, Totals()).add(totals)
            for version in self._open:
                key = version.name, version.version
                found.setdefault(key, Totals()).add(totals_of(version))
            for key, totals in found.items():
                # The runs of one request are all requests less those that ran together. These two
                # are read one after the other: while requests end, the difference may sink.
                published = self._batches.setdefault(key, Counter())
                published |= totals.batches
                totals.batches = published.copy()
        return found

    def names(self) -> dict[tuple[Context, int], str]:
        """What to call the open versions, by what traces call them: the engine's context, and its
        number there."""
        with self._lock:
            versions = list(self._open)
        count = Counter(it.name for it in versions)
        return {
            (it.engine.context, it.number): (
                it.name if count[it.name] == 1 else f"{it.name} {it.version}"
            )
            for it in versions
        }

    def _fold(self) -> None:
        """Keeps the counts of closed engines, which are final, and lets go of these."""
        for version in [it for it in self._open if it.engine.is_closed]:
            key = version.name, version.version
            self._closed.setdefault(key, Totals()).add(totals_of(version))
            self._open.remove(version)
