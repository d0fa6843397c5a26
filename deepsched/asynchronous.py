"""Requests of asyncio's event loops: no thread for any of them, one eventfd for each loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from deepsched.errors import DeadlineExceeded
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.request import Request

# A coroutine that finds the queue full looks again after so many seconds, then after longer.
_FIRST_RETRY_S = 0.0005
_LAST_RETRY_S = 0.01


class LoopInbox:
    """What has ended for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.inbox = Inbox(with_eventfd=True)  # closes the eventfd with itself
        # From here on the loop refers to us, and we not to it.
        loop.add_reader(self.inbox.eventfd, self._on_ended)

    def _on_ended(self) -> None:
        for request in self.inbox.take():
            future: asyncio.Future[list[Any]] = request.tag
            request.tag = None
            if future.done():
                continue  # cancelled, or late
            try:
                future.set_result(request.outputs())
            except Exception as error:
                future.set_exception(error)


_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopInbox] = (
    weakref.WeakKeyDictionary()
)
_latest: tuple[Callable[[], asyncio.AbstractEventLoop | None], Inbox] = (lambda: None), Inbox()


def _inbox_of(loop: asyncio.AbstractEventLoop) -> Inbox:
    global _latest
    if _latest[0]() is loop:  # saves the search in a program with one loop
        return _latest[1]
    found = _inboxes.get(loop)
    if found is None:
        found = _inboxes[loop] = LoopInbox(loop)
    _latest = weakref.ref(loop), found.inbox
    return found.inbox


async def run_on_loop(
    model: Model, inputs: list[Any], timeout: float | None, priority: int, check_inputs: bool
) -> list[Any]:
    """See Engine.run_async."""
    loop = asyncio.get_running_loop()
    inbox = _inbox_of(loop)
    future: asyncio.Future[list[Any]] = loop.create_future()
    request = model.start(inputs, inbox, future, timeout, priority, check_inputs, False)
    if request is None:
        request, timeout = await _start_when_there_is_room(
            model, inputs, inbox, future, timeout, priority, check_inputs
        )
    timer = None
    if timeout is not None:
        timer = loop.call_later(timeout, _expire, model, request, future)
    try:
        return await future
    except asyncio.CancelledError:
        model.cancel(request)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _expire(model: Model, request: Request, future: asyncio.Future[list[Any]]) -> None:
    if not future.done():
        model.cancel(request, as_expired=True)
        future.set_exception(DeadlineExceeded("the request's timeout passed before it was done"))


async def _start_when_there_is_room(
    model: Model,
    inputs: list[Any],
    inbox: Inbox,
    future: asyncio.Future[list[Any]],
    timeout: float | None,
    priority: int,
    check_inputs: bool,
) -> tuple[Request, float | None]:
    """Returns the request and what is left of `timeout`."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    pause = _FIRST_RETRY_S
    while True:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_RETRY_S)
        if deadline is not None:
            timeout = deadline - loop.time()
            if timeout <= 0:
                raise DeadlineExceeded(
                    "the request's timeout passed before the queue had room for it"
                )
        request = model.start(inputs, inbox, future, timeout, priority, check_inputs, False)
        if request is not None:
            return request, timeout
