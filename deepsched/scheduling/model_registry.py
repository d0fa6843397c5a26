"""The models of a context: what traces call them, and what they count, closed ones included."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from deepsched.runtime.model import Model
from deepsched.scheduling.stats import Counts
from deepsched.timeline.records import TracedModel

if TYPE_CHECKING:
    from deepsched.runtime.model import GroupCounts


class Roster:
    """Models come by `add` and go by `retire`.

    `retire` may be called by the garbage collector, in any thread and at any moment: so it takes
    no lock. What it leaves is put away by whoever comes next.
    """

    def __init__(self, new_counts: Callable[[], Counts]) -> None:
        self._new_counts = new_counts
        self._lock = threading.RLock()
        self._models: dict[int, Model] = {}
        self._names: dict[int, TracedModel] = {}
        self._retired: deque[tuple[int, tuple[list[GroupCounts], tuple[int, int, int]]]] = deque()
        self._counts_of_retired = new_counts()
        self._gone: list[int] = []
        """Retired ones whose names a trace may still ask for."""
        self._num_traces = 0

    def add(self, model: Model, name: TracedModel) -> None:
        """A model that is about to be used."""
        with self._lock:
            self._put_away()
            self._models[model.number] = model
            self._names[model.number] = name

    def retire(self, model: Model) -> None:
        """A model that has been closed; nothing of it is counted any more."""
        self._retired.append((model.number, model.counts()))

    def counts(self) -> Counts:
        """Of all models."""
        total = self._new_counts()
        with self._lock:
            self._put_away()
            total.add_all(self._counts_of_retired)
            for model in self._models.values():
                total.add(model.counts())
        return total

    def keep_names(self) -> None:
        """From here on no model's name is forgotten, until `let_names_go` is called as often."""
        with self._lock:
            self._put_away()
            self._num_traces += 1

    def let_names_go(self) -> dict[int, TracedModel]:
        """The names that were kept, by number."""
        with self._lock:
            names = dict(self._names)
            self._num_traces -= 1
            self._put_away()
        return names

    def _put_away(self) -> None:
        """What `retire` has left. With the lock."""
        while self._retired:
            number, counts = self._retired.popleft()
            if self._models.pop(number, None) is not None:
                self._counts_of_retired.add(counts)
                self._gone.append(number)
        if not self._num_traces:
            for number in self._gone:
                del self._names[number]
            self._gone.clear()
