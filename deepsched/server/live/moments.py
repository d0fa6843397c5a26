"""Moments: requests one by one, for the picture of the streams.

A moment has the first MOST_RUNS requests of each context that ended after the moment before: with
few requests that is all of them, so that moments join up; with many it is a glimpse, long enough to
be drawn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepsched.context import Context
from deepsched.errors import OptionError
from deepsched.runtime.request import OUTCOMES
from deepsched.runtime.tracing import ENTRY

MOST_RUNS = 400


class Moments:
    """Traces the contexts of a server, moment by moment. Their streams are lanes, one context's
    after the other's."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        lanes = np.cumsum([0, *(context.num_streams for context in contexts)]).tolist()
        self._contexts = list(zip(contexts, lanes, strict=False))
        self._owner: object | None = None
        self._origin_ns = time.monotonic_ns()
        self._began_ns = 0

    def begin(self) -> None:
        """Traces from now on."""
        owner = object()
        self._began_ns = time.monotonic_ns()
        try:
            for context, _ in self._contexts:
                context._shared.dispatcher.tracer.start(MOST_RUNS, owner)
        except OptionError:  # someone else traces a context: no pictures until they have done
            self._stop(owner)
            return
        self._owner = owner

    def end(self, names: Mapping[tuple[Context, int], str]) -> dict[str, Any] | None:
        """What has been traced, as page.js takes it; None: nothing, since someone else traces.

        Args:
            names: of the engines, by their context and their number there.
        """
        owner, self._owner = self._owner, None
        if owner is None:
            return None
        traces = self._stop(owner)
        ended_ns = time.monotonic_ns()
        runs = np.concatenate([self._runs(*trace) for trace in traces])
        missing = [entries["ended_ns"].max() for _, entries, num_missed in traces if num_missed]
        models, where = np.unique(runs[["context", "model"]], return_inverse=True)
        columns = (
            runs["lane"],
            runs["width"],
            self._ms(runs["begin_ns"]),
            np.round(runs["ran_ns"] / 1e6, 4),
            np.round(runs["waited_ns"] / 1e6, 4),
            where,
            runs["stage"],
            runs["is_inline"],
        )
        return {
            "begin": float(self._ms(self._began_ns)),
            # What ended after that is not known of every context.
            "end": float(self._ms(int(min(missing)) if missing else ended_ns)),
            "now": float(self._ms(ended_ns)),
            "missed": sum(num_missed for _, _, num_missed in traces),
            "names": [
                names.get((self._contexts[index][0], number), "unloaded")
                for index, number in models.tolist()
            ],
            "outcomes": OUTCOMES,
            "runs": list(zip(*(column.tolist() for column in columns), strict=True)),
        }

    def _stop(self, owner: object) -> list[tuple[int, Any, int]]:
        """Of each context: its index, its entries, and how many more there were."""
        found = []
        for index, (context, _) in enumerate(self._contexts):
            entries, num_missed = context._shared.dispatcher.tracer.stop(owner)
            found.append((index, np.frombuffer(entries, ENTRY), num_missed))
        return found

    def _runs(self, index: int, entries: Any, num_missed: int) -> Any:
        context, first_lane = self._contexts[index]
        ranges = np.array([*context._shared.layout.ranges, (0, 0)])
        has_run = entries["started_ns"] > 0
        low, high = ranges[np.where(has_run, entries["group"], -1)].T
        begin_ns = np.where(has_run, entries["started_ns"], entries["ended_ns"]).astype(np.int64)
        runs = np.empty(len(entries), _RUN)
        runs["lane"] = np.where(has_run, low + first_lane, -1)
        runs["width"] = high - low
        runs["begin_ns"] = begin_ns
        runs["ran_ns"] = entries["ended_ns"].astype(np.int64) - begin_ns
        runs["waited_ns"] = begin_ns - entries["submitted_ns"].astype(np.int64)
        runs["context"] = index
        runs["model"] = entries["model"]
        runs["stage"] = entries["stage"]
        runs["is_inline"] = 1 - entries["by_worker"]
        return runs

    def _ms(self, time_ns: Any) -> Any:
        """Since somebody looks: numbers that JavaScript holds exactly."""
        return np.round((time_ns - self._origin_ns) / 1e6, 4)


_RUN = np.dtype(
    [
        *((name, np.int64) for name in ("begin_ns", "ran_ns", "waited_ns")),
        *((name, np.int32) for name in ("lane", "width", "context", "model", "stage", "is_inline")),
    ]
)
