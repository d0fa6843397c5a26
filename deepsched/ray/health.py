"""Whether a replica answers, told truthfully and at no cost to its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from deepsched.context import Context
from deepsched.errors import DeadlineExceeded, InferenceError, InputError, OptionError, QueueFull
from deepsched.ray.metrics import Metrics

PROBE_SECONDS = 10.0
"""How long a replica that has answered nothing since the last look may take for a request."""


class Health:
    """Of the streams of one replica.

    Args:
        name: the model's, for Ray's metrics, which each look brings up to date.
        context: its streams.
    """

    def __init__(self, name: str, context: Context) -> None:
        self._context = context
        self._metrics = Metrics(name)
        self._num_done = 0

    async def check(self, ask: Callable[[], Awaitable[object]]) -> None:
        """What has answered since the last look is healthy, however long its queue. Else a request
        has to get through.

        Args:
            ask: sends one with made-up inputs, urgent, and with a timeout of PROBE_SECONDS.

        Raises:
            DeadlineExceeded: it did not, and nothing else did meanwhile.
        """
        stats = self._context.stats()
        self._metrics.update(stats)
        if stats.done > self._num_done:
            self._num_done = stats.done
            return
        try:
            # A model that does not take made-up inputs has refused them, or failed: it lives.
            with suppress(OptionError, InputError, InferenceError):
                await ask()
        except QueueFull:  # others wait, and the next look shows whether they get through
            return
        except DeadlineExceeded:
            if self._context.stats().done == self._num_done:
                raise
        self._num_done = self._context.stats().done
