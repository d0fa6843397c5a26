"""What looks at each request when it has ended: the access log, and spans; as the settings say."""

from __future__ import annotations

from collections.abc import Callable

from deepsched.server.access_log import AccessLog
from deepsched.server.inference import Ended
from deepsched.server.server import Server
from deepsched.server.tracing import SpanRecorder


def attach(server: Server) -> None:
    """Has requests logged and traced; without either, nobody looks at them.

    Raises:
        OptionError: a setting is wrong, or OpenTelemetry is not installed.
    """
    settings = server.settings
    observers: list[Callable[[Ended], None]] = []
    if settings.access_log:
        log = AccessLog(settings.access_log)
        observers.append(log)
        server.on_answered.append(log.close)
    if settings.trace_share is not None:
        spans = SpanRecorder(settings.trace_share)
        observers.append(spans)
        server.on_answered.append(spans.close)
    if observers:

        def on_end(ended: Ended) -> None:
            for observer in observers:
                observer(ended)

        server.inference.on_end = on_end
