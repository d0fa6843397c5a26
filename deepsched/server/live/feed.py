"""Feed: one sampler for all viewers of the live page, and none while nobody looks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

logger = logging.getLogger("deepsched")

_MOST_SHARE = 0.008
"""Of a core, for sampling: where a sample takes longer, the next comes later."""

_SLOWEST = 4
"""Messages that may wait for a viewer; one that lets more pile up is dropped."""


class Sampled(Protocol):
    """What is sampled; see sampler.Sampler."""

    def begin(self) -> None:
        """Somebody looks from now on."""

    def sample(self, next_s: float) -> bytes:
        """A message: what has happened since the last. `next_s`: until the next one."""

    def end(self) -> None:
        """Nobody looks any more."""


class Feed:
    """Messages for viewers, as they come.

    All of it runs on one event loop. A viewer has a queue of its own that never blocks the
    sampler: who does not read is dropped, and nobody else notices.

    Args:
        sampled: what to sample.
        period_s: time between two messages, at least.
        most_viewers: how many may look at once.
    """

    def __init__(self, sampled: Sampled, period_s: float = 1.0, most_viewers: int = 16) -> None:
        self.most_viewers = most_viewers
        self.is_closed = False
        self._sampled = sampled
        self._period_s = period_s
        self._viewers: set[asyncio.Queue[bytes | None]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def num_viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    @property
    def is_full(self) -> bool:
        """Whether no more viewers are taken."""
        return len(self._viewers) >= self.most_viewers

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """The messages for one more viewer. They end when the feed is closed or the viewer is too
        slow. `is_full` and `is_closed` are the caller's to look at."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_SLOWEST)
        self._viewers.add(queue)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sample())
        try:
            yield _until_none(queue)
        finally:
            self._viewers.discard(queue)

    def close(self) -> None:
        """Ends all viewers' messages: the server stops."""
        self.is_closed = True
        for queue in self._viewers:
            _end(queue)

    async def _sample(self) -> None:
        """While somebody looks."""
        self._sampled.begin()
        try:
            pause = self._period_s
            while self._viewers and not self.is_closed:
                await asyncio.sleep(pause)
                began = time.thread_time()
                message = self._sampled.sample(pause)
                pause = max(self._period_s, (time.thread_time() - began) / _MOST_SHARE)
                for queue in list(self._viewers):
                    self._send(queue, message)
        except Exception:
            logger.exception("the live page's figures cannot be read; its viewers are dropped")
            for queue in self._viewers:
                _end(queue)
        finally:
            self._sampled.end()
            self._task = None

    def _send(self, queue: asyncio.Queue[bytes | None], message: bytes) -> None:
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            self._viewers.discard(queue)
            _end(queue)


async def _until_none(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (message := await queue.get()) is not None:
        yield message


def _end(queue: asyncio.Queue[bytes | None]) -> None:
    """No more messages; those that wait are of no use any more."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
