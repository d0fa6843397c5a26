"""Sampler: what the live page shows, read once for all who look.

A message is JSON, made once a second:

    at          Unix time, s; next: seconds until the next message
    state       "ready", "starting" or "stopping"
    rate, failing            requests a second that were answered, and that were not
    waiting, running         [p50, p99] in ms, or null; of the last `window` seconds, as the rates
    queue       [depth, capacity]
    busy        share of the time in which streams ran requests; streams: of each
    models      name, version, state, reason, rate, failing, waiting, running of each
    memory      resident bytes; throttled: share of the time; lost_cpus: a list such as "0-3,7"
    moment      requests one by one, for the picture of the streams; times in ms

A moment has the first MOST_RUNS requests that ended after the message before: with few requests
that is all of them, so that moments join up; with many it is a glimpse, long enough to be drawn.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil

from deepsched.errors import OptionError
from deepsched.machine.cgroup import throttled_seconds
from deepsched.machine.sysfs import format_cpu_list
from deepsched.runtime.request import OUTCOMES
from deepsched.runtime.tracing import ENTRY
from deepsched.scheduling.stats import Counts, Latency
from deepsched.server.repository import Repository
from deepsched.server.server import Server

WINDOW_S = 10
MOST_RUNS = 400


class Sampler:
    """See the module. Its methods are called on one thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._context = server.repository.context
        self._encode = msgspec.json.Encoder().encode
        self._owner: object | None = None
        self._origin_ns = 0
        self._began_ns = 0
        self._seen: deque[_Seen] = deque()

    def begin(self) -> None:
        """Somebody looks from now on."""
        self._origin_ns = time.monotonic_ns()
        self._seen.append(_Seen.of(self._server.repository))
        self._begin_moment()

    def end(self) -> None:
        """Nobody looks any more."""
        self._end_moment()
        self._seen.clear()

    def sample(self, next_s: float) -> bytes:
        """A message. `next_s`: until the next."""
        moment = self._end_moment()
        self._begin_moment()
        now = _Seen.of(self._server.repository)
        before = self._seen[0]
        self._seen.append(now)
        while len(self._seen) > 2 and now.at - self._seen[1].at >= WINDOW_S:
            self._seen.popleft()
        seconds = max(now.at - before.at, 1e-3)
        backlog = self._context._shared.dispatcher.backlog
        streams = [
            min(1.0, (after - earlier) / seconds)
            for earlier, after in zip(before.busy_s, now.busy_s, strict=True)
        ]
        return self._encode(
            {
                "at": time.time(),
                "next": next_s,
                "state": self._state(),
                **_rates(before.total, now.total, seconds),
                "queue": [backlog.depth, backlog.capacity],
                "busy": sum(streams) / len(streams),
                "streams": streams,
                "models": self._models(before, now, seconds),
                "memory": psutil.Process().memory_info().rss,
                "throttled": min(1.0, (now.throttled_s - before.throttled_s) / seconds),
                "lost_cpus": format_cpu_list(self._context._shared.dispatcher.pins.lost_cpus),
                "moment": moment,
            }
        )

    def _state(self) -> str:
        if self._server.is_stopping:
            return "stopping"
        return "ready" if self._server.is_ready else "starting"

    def _models(self, before: _Seen, now: _Seen, seconds: float) -> list[dict[str, Any]]:
        """Every version in the repository's index, with figures where it serves."""
        serving = {(it.name, it.version): it for it in self._server.repository.serving()}
        found = []
        for entry in self._server.repository.index():
            figures: dict[str, Any] = {}
            version = serving.get((entry.name, entry.version))
            number = None if version is None else version.number
            if number in now.versions:
                counted = now.versions[number]
                nothing = _Counted(self._context._shared.new_counts().flat(), 0)
                figures = _rates(before.versions.get(number, nothing), counted, seconds)
            found.append(
                {
                    "name": entry.name,
                    "version": entry.version,
                    "state": entry.state.lower(),
                    "reason": entry.reason,
                    **figures,
                }
            )
        return found

    # --- Requests one by one -----------------------------------------------------------------

    def _begin_moment(self) -> None:
        owner = object()
        self._began_ns = time.monotonic_ns()
        try:
            self._context._shared.dispatcher.tracer.start(MOST_RUNS, owner)
        except OptionError:
            return  # someone traces the context: no pictures until they have done
        self._owner = owner

    def _end_moment(self) -> dict[str, Any] | None:
        if self._owner is None:
            return None
        entries, num_missed = self._context._shared.dispatcher.tracer.stop(self._owner)
        ended_ns = time.monotonic_ns()
        self._owner = None
        runs = np.frombuffer(entries, ENTRY)
        names = self._server.observed.names()
        numbers, models = np.unique(runs["model"], return_inverse=True)
        ranges = np.array([*self._context._shared.layout.ranges, (-1, 0)])
        begins = np.where(runs["started_ns"], runs["started_ns"], runs["ended_ns"]).astype(np.int64)
        low, high = ranges[np.where(runs["started_ns"], runs["group"], -1)].T
        columns = (
            low,
            np.where(low < 0, 0, high - low),
            self._ms(begins),
            np.round((runs["ended_ns"].astype(np.int64) - begins) / 1e6, 4),
            np.round((begins - runs["submitted_ns"].astype(np.int64)) / 1e6, 4),
            models,
            runs["stage"],
            1 - runs["by_worker"],
        )
        return {
            "begin": float(self._ms(self._began_ns)),
            "end": float(self._ms(int(runs["ended_ns"].max()) if num_missed else ended_ns)),
            "now": float(self._ms(ended_ns)),
            "missed": num_missed,
            "names": [names.get(int(number), "unloaded") for number in numbers],
            "outcomes": OUTCOMES,
            "runs": list(zip(*(column.tolist() for column in columns), strict=True)),
        }

    def _ms(self, time_ns: Any) -> Any:
        """Since somebody looks: numbers that JavaScript holds exactly."""
        return np.round((time_ns - self._origin_ns) / 1e6, 4)


class _Counted(NamedTuple):
    counts: Counts
    num_invalid: int


class _Seen(NamedTuple):
    """The counters at one moment."""

    at: float
    total: _Counted
    versions: dict[int, _Counted]
    """By the engine's number: a reload begins anew."""
    busy_s: list[float]
    throttled_s: float

    @classmethod
    def of(cls, repository: Repository) -> _Seen:
        """Reads them."""
        every = repository.context._shared.registry.counts()
        versions = {
            it.number: _Counted(it.counts().flat(), it.num_invalid) for it in repository.serving()
        }
        return cls(
            time.monotonic(),
            _Counted(every.flat(), sum(it.num_invalid for it in versions.values())),
            versions,
            every.busy_seconds(),
            max(throttled_seconds(Path("/")), default=0.0),
        )


def _rates(before: _Counted, now: _Counted, seconds: float) -> dict[str, Any]:
    stats = now.counts.since(before.counts).summary(seconds, 0, 0, 0)
    invalid = max(0, now.num_invalid - before.num_invalid)
    failing = stats.failed + stats.expired + stats.cancelled + stats.rejected + invalid
    return {
        "rate": stats.done / seconds,
        "failing": failing / seconds,
        "waiting": _milliseconds(stats.waiting),
        "running": _milliseconds(stats.running),
    }


def _milliseconds(latency: Latency) -> list[float] | None:
    return [latency.p50 * 1e3, latency.p99 * 1e3] if latency.count else None
