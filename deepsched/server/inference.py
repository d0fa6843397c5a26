"""The one path of all protocols from a decoded request to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from deepsched.server.errors import RequestError
from deepsched.server.model_version import ModelVersion
from deepsched.server.repository import Repository
from deepsched.server.shared_memory import Regions

# The wire's 1 is the highest, 2 the usual, 3 the lowest; 0, and what is above, the usual.
run_times_ns: ContextVar[Sequence[int]] = ContextVar("run_times_ns", default=())
"""Of the run that the current task has made, where somebody wants to know: for `Ended`."""

_PRIORITIES = {1: 1, 3: -1}


class Ended(NamedTuple):
    """How a request ended; for whoever logs or traces requests."""

    model: str
    version: str
    request_id: str
    protocol: str
    """rest, v1 or grpc"""
    outcome: str
    """done, or a word of `errors.Answer.outcome`"""
    began_ns: int
    """of time.monotonic_ns(): when its body had arrived"""
    ended_ns: int
    peer: str
    traceparent: str
    times_ns: Sequence[int] = ()
    """When it was queued, and when its run began and ended, if it was answered."""


class Inference:
    """Where the codecs of all protocols meet the engines."""

    def __init__(self, repository: Repository, regions: Regions) -> None:
        self.repository = repository
        self.regions = regions
        self.on_end: Callable[[Ended], None] | None = None

    async def run(
        self, version: ModelVersion, inputs: Mapping[str, Any], timeout: float | None, priority: int
    ) -> list[Any]:
        """The outputs of all, in the graph's order.

        To be called without an `await` since the repository gave `version`, so that a reload waits
        for it. Cancelling it cancels the request.

        Args:
            version: the model.
            inputs: arrays by name; what `version.inputs` does not know has been refused.
            timeout: seconds; None: no limit.
            priority: the engine's.

        Raises:
            DeepschedError: any error of `Engine.run_async`; QueueFull at once.
        """
        times_ns: list[int] | None = None
        if self.on_end is not None:
            times_ns = []
            run_times_ns.set(times_ns)
        version.enter()
        try:
            outputs = await version.engine.run_async(
                version.in_order(inputs),
                timeout=timeout,
                priority=priority,
                block=False,
                times_ns=times_ns,
            )
        finally:
            version.leave()
        version.note_answer()
        return outputs


def timeout_of(parameters: Mapping[str, Any], limit: float | None) -> float | None:
    """Seconds that a request may take.

    Args:
        parameters: its own: `timeout` is in microseconds, 0 for none.
        limit: what else limits it, in seconds; None: nothing.

    Raises:
        RequestError: a timeout that is none.
    """
    timeout = parameters.get("timeout")
    if not timeout:
        return limit
    if type(timeout) is str and timeout.isdecimal():  # as some clients write 64-bit integers
        timeout = int(timeout)
    if type(timeout) is not int or not 0 < timeout < 2**63:
        raise RequestError(
            f"parameter 'timeout': expected microseconds, an integer, got {timeout!r:.40}"
        )
    seconds = timeout / 1e6
    return seconds if limit is None else min(seconds, limit)


def priority_of(parameters: Mapping[str, Any]) -> int:
    """The engine's priority for a request's `priority`: 1 is the highest, 2 the usual, 3 the
    lowest; 0, and what is above, the usual.

    >>> [priority_of({"priority": priority}) for priority in (0, 1, 2, 3, 4)]
    [0, 1, 0, -1, 0]
    """
    priority = parameters.get("priority", 0)
    if type(priority) is str and priority.isdecimal():
        priority = int(priority)
    if type(priority) is not int or priority < 0:
        raise RequestError(
            f"parameter 'priority': expected an integer, 1 the highest, got {priority!r:.40}"
        )
    return _PRIORITIES.get(priority, 0)
