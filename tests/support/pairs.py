"""A simulator of pairs: a machine whose cores only have a distance from one another."""

from __future__ import annotations

import random
from collections.abc import Sequence

MEMORY_NS = 120.0


class SimulatedPairs:
    """Cores with labels: a pair of one label is near, of two far, of two sockets farther.

    Figures are up to `noise` higher than the distance; one in `1 / disturbed` several times higher,
    or missing. Each takes `seconds_each` on `clock`.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        near: float = 100.0,
        far: float = 300.0,
        farther: float = 600.0,
        labels_per_socket: int = 10**6,
        noise: float = 0.1,
        disturbed: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.labels = labels
        self.num_measured = 0
        self.seconds_each = 0.001
        self._distances = near, far, farther
        self._labels_per_socket = labels_per_socket
        self._noise = noise
        self._disturbed = disturbed
        self._random = random.Random(seed)

    def round_trip(self, a: int, b: int) -> float | None:
        self.num_measured += 1
        near, far, farther = self._distances
        one, other = self.labels[a], self.labels[b]
        trip = (
            far if one // self._labels_per_socket == other // self._labels_per_socket else farther
        )
        if one == other:
            trip = near
        trip *= 1 + self._noise * self._random.random()
        if self._random.random() < self._disturbed:
            return None if self._random.random() < 0.3 else trip * self._random.uniform(1, 6)
        return trip

    def clock(self) -> float:
        return self.num_measured * self.seconds_each

    @property
    def groups(self) -> list[list[int]]:
        """The cores of each label, by their first core."""
        groups: dict[int, list[int]] = {}
        for core, label in enumerate(self.labels):
            groups.setdefault(label, []).append(core)
        return list(groups.values())
