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
    moment      requests one by one, for the picture of the streams; times in ms; see moments.py
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from deepsched.machine.cgroup import throttled_seconds
from deepsched.machine.sysfs import format_cpu_list
from deepsched.scheduling.stats import Counts, Latency
from deepsched.server.live.moments import Moments
from deepsched.server.model_version import ModelVersion
from deepsched.server.repository import Repository
from deepsched.server.server import Server

WINDOW_S = 10


class Sampler:
    """See the module. Its methods are called on one thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._contexts = server.repository.streams.contexts
        self._moments = Moments(self._contexts)
        self._encode = msgspec.json.Encoder().encode
        self._seen: deque[_Seen] = deque()

    def begin(self) -> None:
        """Somebody looks from now on."""
        self._seen.append(_Seen.of(self._server.repository))
        self._moments.begin()

    def end(self) -> None:
        """Nobody looks any more."""
        self._moments.end({})
        self._seen.clear()

    def sample(self, next_s: float) -> bytes:
        """A message. `next_s`: until the next."""
        moment = self._moments.end(self._server.observed.names())
        self._moments.begin()
        now = _Seen.of(self._server.repository)
        before = self._seen[0]
        self._seen.append(now)
        while len(self._seen) > 2 and now.at - self._seen[1].at >= WINDOW_S:
            self._seen.popleft()
        seconds = max(now.at - before.at, 1e-3)
        dispatchers = [context._shared.dispatcher for context in self._contexts]
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
                "queue": [
                    sum(it.backlog.depth for it in dispatchers),
                    sum(it.backlog.capacity for it in dispatchers),
                ],
                "busy": sum(streams) / len(streams),
                "streams": streams,
                "models": self._models(before, now, seconds),
                "memory": psutil.Process().memory_info().rss,
                "throttled": min(1.0, (now.throttled_s - before.throttled_s) / seconds),
                "lost_cpus": format_cpu_list(
                    cpu for it in dispatchers for cpu in it.pins.lost_cpus
                ),
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
            if version in now.versions:
                counted = now.versions[version]
                nothing = _Counted(Counts(1), 0)
                figures = _rates(before.versions.get(version, nothing), counted, seconds)
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


class _Counted(NamedTuple):
    counts: Counts
    num_invalid: int


class _Seen(NamedTuple):
    """The counters at one moment."""

    at: float
    total: _Counted
    versions: dict[ModelVersion, _Counted]
    """A reload begins anew."""
    busy_s: list[float]
    throttled_s: float

    @classmethod
    def of(cls, repository: Repository) -> _Seen:
        """Reads them."""
        every = [context._shared.registry.counts() for context in repository.streams.contexts]
        total = Counts(1)
        for counts in every:
            total.add_all(counts.flat())
        versions = {it: _Counted(it.counts().flat(), it.num_invalid) for it in repository.serving()}
        return cls(
            time.monotonic(),
            _Counted(total, sum(it.num_invalid for it in versions.values())),
            versions,
            [seconds for counts in every for seconds in counts.busy_seconds()],
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
