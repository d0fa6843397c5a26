"""The one path of all protocols from a decoded request to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from deepsched.errors import InputError
from deepsched.server.model_version import ModelVersion
from deepsched.server.repository import Repository
from deepsched.server.shared_memory import Regions

run_times_ns: ContextVar[Sequence[int]] = ContextVar("run_times_ns", default=())
"""Of the run that the current task has made, where somebody wants to know: for `Ended`."""


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
        except InputError:  # the few that onnxruntime itself refuses have failed as well
            version.num_invalid += 1
            raise
        finally:
            version.leave()
        version.note_answer()
        return outputs
