"""Stats of an engine as metrics of Ray, which its nodes export to Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from deepsched.scheduling.stats import Stats

_OUTCOMES = ("done", "failed", "expired", "cancelled", "rejected")


class Metrics:
    """Of one replica. `update` tells Ray what has changed; requests cost nothing."""

    def __init__(self, model: str) -> None:
        tags = ("model", "outcome")
        self._requests = Counter(
            "deepsched_requests", "Requests that have ended, by outcome", tag_keys=tags
        )
        self._gauges = {
            name: Gauge(f"deepsched_{name}", text, tag_keys=("model",))
            for name, text in (
                ("waiting_requests", "Requests in the queue"),
                ("busy_fraction", "Share of the time in which streams ran requests"),
                ("waiting_p99_seconds", "From the call until the run began"),
                ("running_p99_seconds", "Inside ONNX Runtime"),
            )
        }
        self._model = model
        self._told = dict.fromkeys(_OUTCOMES, 0)

    def update(self, stats: Stats) -> None:
        for outcome, told in self._told.items():
            count: int = getattr(stats, outcome)
            if count > told:
                self._requests.inc(count - told, {"model": self._model, "outcome": outcome})
                self._told[outcome] = count
        figures = {
            "waiting_requests": stats.queue_depth,
            "busy_fraction": stats.busy_fraction,
            "waiting_p99_seconds": stats.waiting.p99,
            "running_p99_seconds": stats.running.p99,
        }
        for name, value in figures.items():
            self._gauges[name].set(value, {"model": self._model})
