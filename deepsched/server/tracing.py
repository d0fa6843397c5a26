"""OpenTelemetry: a span for each sampled request, with W3C trace context.

A span is made when its request has ended, from times that the engine has taken anyway: a request
that is not sampled costs a look at its `traceparent`. Needs the extra `otel`; without it, and
unless it is asked for, nothing of OpenTelemetry is imported.

The exporter is OTLP over HTTP, configured by OpenTelemetry's own environment variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and others).
"""

from __future__ import annotations

import time
from typing import Any

from deepsched.errors import OptionError
from deepsched.server.inference import Ended
from deepsched.version import __version__

_OUTCOMES_OF_CLIENTS = ("done", "cancelled")
"""Ends that are no error of the server's or of the request."""


class SpanRecorder:
    """Takes what ended, as `Inference.on_end`.

    Args:
        share: of the requests without trace context to record, from 0 to 1. A request whose
            `traceparent` says that it is recorded is, and one whose says that it is not is not.
        exporter: where spans go; None for OTLP over HTTP.

    Raises:
        OptionError: OpenTelemetry is not installed, or `share` is out of range.
    """

    def __init__(self, share: float, exporter: Any = None) -> None:
        if not 0 <= share <= 1:
            raise OptionError(f"trace_share must be from 0 to 1, got {share!r}")
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise OptionError(
                f"trace_share needs OpenTelemetry ({error}); pip install 'deepsched[otel]'"
            ) from error
        self._trace = trace
        self._read = TraceContextTextMapPropagator().extract
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": "deepsched", "service.version": __version__}),
        )
        # Spans wait in a bounded queue for a thread of their own; what does not fit is dropped.
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("deepsched", __version__)

    def __call__(self, ended: Ended) -> None:
        """A request ended."""
        headers = {"traceparent": ended.traceparent} if ended.traceparent else {}
        to_unix_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            f"infer {ended.model}",
            context=self._read(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=ended.began_ns + to_unix_ns,
            attributes={
                "deepsched.model": ended.model,
                "deepsched.version": ended.version,
                "deepsched.request_id": ended.request_id,
                "deepsched.outcome": ended.outcome,
                "rpc.system": ended.protocol,
                "client.address": ended.peer,
            },
        )
        if not span.is_recording():
            return
        # Empty, where it was not answered.
        for name, at_ns in zip(("queued", "run began", "run ended"), ended.times_ns, strict=False):
            span.add_event(name, timestamp=at_ns + to_unix_ns)
        if ended.outcome not in _OUTCOMES_OF_CLIENTS:
            span.set_status(self._trace.StatusCode.ERROR, ended.outcome)
        span.end(ended.ended_ns + to_unix_ns)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()
