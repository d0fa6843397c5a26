"""ModelRegistry: the models of a context, closed ones included, as far as they are counted or named
in a trace."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from deepsched.errors import OptionError
from deepsched.scheduling.served import ServedModel
from deepsched.scheduling.stats import Counts
from deepsched.timeline.records import TracedModel


class ModelRegistry:
    """Models come by `add` and go by `retire`.

    `retire` may be called by the garbage collector, in any thread and at any moment: so it takes
    no lock. What it leaves is drained by whoever comes next.

    Args:
        new_counts: of nothing yet, by the streams of the moment.
    """

    def __init__(self, new_counts: Callable[[], Counts]) -> None:
        self._new_counts = new_counts
        self._lock = threading.RLock()
        self._served: dict[int, ServedModel] = {}
        self._names: dict[int, TracedModel] = {}
        self._retired: deque[tuple[int, Counts]] = deque()
        self._counts_of_retired: Counts | None = None
        self._unnamed: list[int] = []
        """Retired ones whose names a trace may still ask for."""
        self._num_traces = 0

    def add(self, served: ServedModel) -> None:
        """A model that is about to be used."""
        with self._lock:
            self._drain()
            self._served[served.model.number] = served
            self._names[served.model.number] = served.name

    def retire(self, served: ServedModel) -> None:
        """A model that has been closed; its counts are final. The second time has no effect."""
        self._retired.append((served.model.number, served.counts()))

    def served(self) -> list[ServedModel]:
        """Models that have not been retired, as far as has been drained."""
        return list(self._served.values())

    def counts(self) -> Counts:
        """The sum over all models there ever were."""
        total = self._new_counts()
        with self._lock:
            self._drain()
            if self._counts_of_retired is not None:
                total.add_all(self._counts_of_retired)
            for served in self.served():  # a copy: a signal handler may add one meanwhile
                total.add_all(served.counts())
        return total

    def untraced(self, change: Callable[[], None]) -> None:
        """Calls `change`, before or after which a trace may begin.

        Raises:
            OptionError: one is under way.
        """
        with self._lock:
            if self._num_traces:
                raise OptionError(
                    "this context is being traced, and a trace has one set of streams; resize it "
                    "before or after"
                )
            change()

    def retain_names(self) -> None:
        """From here on no model's name is forgotten, until `release_names` is called as often."""
        with self._lock:
            self._drain()
            self._num_traces += 1

    def release_names(self) -> dict[int, TracedModel]:
        """The names that were retained, by the model's number."""
        with self._lock:
            names = dict(self._names)
            self._num_traces -= 1
            self._drain()
        return names

    def drain(self) -> None:
        """Lets go of the models that have been retired."""
        with self._lock:
            self._drain()

    def _drain(self) -> None:
        """With the lock; which a finalizer on this very thread may take again in the middle of it,
        so each step takes one thing out and tolerates that another has."""
        while self._retired:
            number, counts = self._retired.popleft()
            if self._served.pop(number, None) is not None:
                # By the streams of the moment: what ran on others is a sum.
                total = self._new_counts()
                if self._counts_of_retired is not None:
                    total.add_all(self._counts_of_retired)
                total.add_all(counts)
                self._counts_of_retired = total
                self._unnamed.append(number)
        while self._unnamed and not self._num_traces:
            self._names.pop(self._unnamed.pop(), None)
