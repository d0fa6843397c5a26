"""/metrics: Prometheus' text format, or OpenMetrics where the Accept header asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepsched.machine.cgroup import throttling
from deepsched.server.observed import BATCHES, BOUNDS_S, OUTCOMES
from deepsched.server.server import Server
from deepsched.version import __version__


def routes(server: Server) -> list[Route]:
    """The endpoint."""
    registry = CollectorRegistry()
    registry.register(ServerCollector(server))
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: with many models it takes longer than requests should wait.
        return Response(await asyncio.to_thread(encode, registry), media_type=content_type)

    return [Route("/metrics", metrics)]


class ServerCollector(Collector):
    """Reads everything when it is asked; see observed.py."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def describe(self) -> list[Metric]:
        """Nothing: else registering would read it all, before the server has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric but the process's own."""
        yield InfoMetricFamily("deepsched", "The server.", {"version": __version__})
        yield from self._requests()
        yield from self._streams()
        yield from self._models()
        yield from _cpu_quota()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "deepsched_requests",
            "Requests by how they ended. rejected: the queue was full; invalid: they did not fit "
            "the model.",
            labels=("model", "version", "outcome"),
        )
        waiting = HistogramMetricFamily(
            "deepsched_request_waiting_seconds",
            "From the moment a request was queued until its run began.",
            labels=("model", "version"),
        )
        running = HistogramMetricFamily(
            "deepsched_request_running_seconds",
            "Inside ONNX Runtime.",
            labels=("model", "version"),
        )
        batches = HistogramMetricFamily(
            "deepsched_batch_size",
            "Requests that ran together, of each run.",
            labels=("model", "version"),
        )
        for key, totals in sorted(self._server.observed.totals().items()):
            for outcome in OUTCOMES:
                requests.add_metric((*key, outcome), totals.outcomes[outcome])
            waiting.add_metric(key, _buckets(totals.waiting), totals.waiting_s)
            running.add_metric(key, _buckets(totals.running), totals.running_s)
            sizes = totals.batches
            up_to = [sum(sizes[size] for size in sizes if size <= bound) for bound in BATCHES]
            requests_in_runs = sum(size * count for size, count in sizes.items())
            batches.add_metric(
                key,
                [
                    *((str(bound), count) for bound, count in zip(BATCHES, up_to, strict=True)),
                    ("+Inf", sizes.total()),
                ],
                requests_in_runs,
            )
        yield from (requests, waiting, running, batches)

    def _streams(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "deepsched_queue_depth", "Requests that wait.", labels=("context",)
        )
        capacity = GaugeMetricFamily(
            "deepsched_queue_capacity",
            "As many may wait; more are rejected.",
            labels=("context",),
        )
        busy = CounterMetricFamily(
            "deepsched_stream_busy_seconds",
            "Time in which a stream ran requests; its rate is the share of the time it was busy.",
            labels=("context", "stream"),
        )
        lost = GaugeMetricFamily(
            "deepsched_lost_cpus",
            "CPUs of the streams that the process may not use any more.",
            labels=("context",),
        )
        streams = self._server.repository.streams
        for name, context in zip(streams.names, streams.contexts, strict=True):
            shared = context._shared
            depth.add_metric((name,), shared.dispatcher.backlog.depth)
            capacity.add_metric((name,), shared.dispatcher.backlog.capacity)
            lost.add_metric((name,), len(shared.dispatcher.pins.lost_cpus))
            for index, seconds in enumerate(shared.registry.counts().busy_seconds()):
                busy.add_metric((name, str(index)), seconds)
        yield from (depth, capacity, busy, lost)

    def _models(self) -> Iterator[Metric]:
        repository = self._server.repository
        yield GaugeMetricFamily(
            "deepsched_ready",
            "1 if every model that should serve does, and the server is not stopping.",
            int(self._server.is_ready),
        )
        ready = GaugeMetricFamily(
            "deepsched_model_ready", "1 if it serves.", labels=("model", "version")
        )
        for entry in repository.index():
            ready.add_metric((entry.name, entry.version), int(entry.state == "READY"))
        yield ready
        under_way = GaugeMetricFamily(
            "deepsched_requests_under_way",
            "Requests between their arrival and their answer.",
            labels=("model", "version"),
        )
        for version in repository.serving():
            under_way.add_metric((version.name, version.version), version.num_under_way)
        yield under_way
        loads = CounterMetricFamily(
            "deepsched_model_loads",
            "Loads and reloads by how they ended. failed: the version before goes on.",
            labels=("model", "outcome"),
        )
        for key, count in sorted(self._server.observed.loads.items()):
            loads.add_metric(key, count)
        yield loads


def _buckets(cumulative: list[int]) -> list[tuple[str, float]]:
    """As prometheus_client takes them."""
    return [(le, float(count)) for le, count in zip(_LE, cumulative, strict=True)]


_LE = (*map(str, BOUNDS_S), "+Inf")


def _cpu_quota() -> Iterator[Metric]:
    # A group and its parent may count the same throttling: the worst, not the sum.
    groups = throttling(Path("/"))
    if not groups:
        return
    yield CounterMetricFamily(
        "deepsched_cpu_throttled_seconds",
        "Time for which the CPU quota kept threads from running, summed over CPUs.",
        max(group.seconds for group in groups),
    )
    yield CounterMetricFamily(
        "deepsched_cpu_throttled_periods",
        "Periods in which the CPU quota was used up.",
        max(group.num_throttled for group in groups),
    )
    yield CounterMetricFamily(
        "deepsched_cpu_periods",
        "Periods of the CPU quota.",
        max(group.num_periods for group in groups),
    )
