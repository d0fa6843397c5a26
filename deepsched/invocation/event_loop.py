"""Requests from asyncio: no thread for any of them, one eventfd per event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from deepsched.checks import check_timeout
from deepsched.errors import DeadlineExceeded, DeepschedError
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.parts import outputs_of_parts, start_together
from deepsched.runtime.request import Request

# When to wake the workers that queuing left asleep; see LoopInbox.note.
_WAKE_AFTER_S = 0.001

# How long others of a loop may wait for a task whose requests the loop runs itself.
_YIELD_EVERY_S = 0.001

# When to look for what should have run at the end of the loop's turn, and was not.
_LOOK_AGAIN_AFTER_S = 0.5

# More than start_together takes at once.
_MOST_TOGETHER = 256

# So many of these make it worth while to end each one's turn, so that their requests run together.
_CROWD = 8

# Retries of a coroutine that found the queue full: exponential backoff between these.
_FIRST_RETRY_S = 0.0005
_LAST_RETRY_S = 0.01


class FailedTogether:
    """A run of several requests that failed, for all that is known because of one of them."""

    def __init__(self, model: Model, num_parts: int) -> None:
        self._model = model
        self._num_left = num_parts

    async def await_one(self, alone: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        """Awaits what runs one of them by itself."""
        outputs = await alone
        self._num_left -= 1
        if not self._num_left:  # none was to blame
            self._model.note_needless_failure()
        return outputs


# Of a request that waited for the end of the loop's turn. None: it is to run by itself.
_Gathered = list[Any] | FailedTogether | None

# Such a request: its inputs, its future, run_async's times_ns.
_Gathering = tuple[list[Any], asyncio.Future[_Gathered], list[int] | None]


class LoopInbox:
    """Ended requests of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.inbox = Inbox(with_eventfd=True)  # closes the eventfd with itself
        self.num_under_way = 0
        self.yields_at = 0.0
        """Of the loop's clock: when a request that the loop runs itself lets others go first."""
        self._ended: deque[Request] = deque()
        """Taken from the inbox, and not handed over yet."""
        self._unwoken: set[Model] = set()
        self.gathers = False
        """Whether requests that the loop runs itself are run at the end of its turn, together with
        those that other tasks start in it: so long as there is a crowd of them."""
        self._gathered: dict[Model, deque[_Gathering]] = {}
        self._gathered_ns = 0
        """Of the monotonic clock: when the first of these came."""
        self._looks_again = False
        self._num_yielding = 0
        # The loop refers to us from here on, and we to it only through tasks that it is to go on
        # with: no cycle keeps a loop alive that nobody uses.
        loop.add_reader(self.inbox.eventfd, self._on_ended)

    def __del__(self) -> None:
        # The loop is gone. Requests that are still under way keep the inbox until _reap takes them.
        if getattr(self, "num_under_way", 0):  # not if __init__ was interrupted
            _orphans.append((self.inbox, self.num_under_way))
        _let_go(getattr(self, "_ended", ()))

    async def let_others_go_first(self, loop: asyncio.AbstractEventLoop) -> None:
        """For a task whose requests the loop runs itself, and which may do nothing else."""
        self._num_yielding += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._num_yielding -= 1
        if self._num_yielding + 1 >= _CROWD:  # they, too, do just that
            self.gathers = True
        self.yields_at = loop.time() + _YIELD_EVERY_S

    def gather(
        self,
        loop: asyncio.AbstractEventLoop,
        model: Model,
        inputs: list[Any],
        times_ns: list[int] | None,
    ) -> asyncio.Future[_Gathered]:
        """Leaves a request to the end of the loop's turn."""
        if not self._gathered:
            self._gathered_ns = time.monotonic_ns()
            loop.call_soon(self._run_gathered)
        if not self._looks_again:
            # A signal handler's exception may hit that call before it has done anything.
            self._looks_again = True
            loop.call_later(_LOOK_AGAIN_AFTER_S, self._look_again)
        future: asyncio.Future[_Gathered] = loop.create_future()
        self._gathered.setdefault(model, deque()).append((inputs, future, times_ns))
        return future

    def _look_again(self) -> None:
        self._looks_again = False
        if self._gathered:
            self._run_gathered()

    def _run_gathered(self) -> None:
        have_joined = False
        try:
            for model in list(self._gathered):
                waiting = deque(each for each in self._gathered[model] if not each[1].done())
                self._gathered[model] = waiting  # without those that were cancelled
                is_crowd = len(waiting) >= _CROWD
                have_joined |= self._run_together(model, waiting) and is_crowd
                del self._gathered[model]
            self.gathers = have_joined
        finally:
            if self._gathered:  # a signal handler's exception came between: go on after it
                asyncio.get_running_loop().call_soon(self._run_gathered)

    def _run_together(self, model: Model, waiting: deque[_Gathering]) -> bool:
        """Starts what may run together, has the rest run alone, and takes both out of `waiting`.

        Whether any may. Nothing is taken out before it has been handed over: whatever a signal
        handler raises, and wherever, what is left is started again, or has its end already.
        """
        have_joined = False
        while waiting:
            few = list(itertools.islice(waiting, _MOST_TOGETHER))
            self.num_under_way += 1  # before: as in run_on_loop
            try:
                request, num_parts = start_together(
                    model, [inputs for inputs, _, _ in few], self.inbox, self._gathered_ns
                )
            except (DeepschedError, MemoryError):  # closed, say: each will meet it by itself
                request, num_parts = None, len(few)
            parts = few[:num_parts]
            if request is None:
                self.num_under_way -= 1
                _start_alone(parts)
            elif request.ran_inline:
                self.num_under_way -= 1
                _hand_over_parts(request, parts)
                have_joined = True
            else:
                request.tag = parts
                self.note(asyncio.get_running_loop(), model)
                have_joined = True
            for _ in parts:
                waiting.popleft()
        return have_joined

    def note(self, loop: asyncio.AbstractEventLoop, model: Model) -> None:
        """Takes note of a request of `model` that has been queued.

        While others serve the backlog of short runs soon, the runtime leaves the worker asleep
        whose core a busy loop runs on. A timer wakes it in case they do not.
        """
        if not self._unwoken:
            loop.call_later(_WAKE_AFTER_S, self._wake_workers)
        self._unwoken.add(model)

    def _wake_workers(self) -> None:
        fresh: set[Model] = set()  # allocated first: the garbage collector may run a finalizer
        models, self._unwoken = self._unwoken, fresh
        for model in models:
            model.wake_workers()

    def _on_ended(self) -> None:
        num_before = len(self._ended)
        try:
            self._ended.extend(self.inbox.take())
            self.num_under_way -= len(self._ended) - num_before
            while self._ended:
                _hand_over(self._ended.popleft())
        finally:
            if self._ended:  # a signal handler's exception came between: go on after it
                asyncio.get_running_loop().call_soon(self._on_ended)


def _let_go(ended: Iterable[Request]) -> None:
    """Of requests that no loop will hand over. A future leads to its task, whose frames hold the
    request; the garbage collector does not see that circle."""
    for request in ended:
        request.tag = None


def _start_alone(waiting: list[_Gathering], failed: FailedTogether | None = None) -> None:
    for _, future, _ in waiting:
        if not future.done():
            future.set_result(failed)


def _hand_over_parts(request: Request, parts: list[_Gathering]) -> None:
    try:
        outputs = outputs_of_parts(request)
        if outputs is None:
            _start_alone(parts, FailedTogether(request.owner, len(parts)))
            return
        for (_, future, times_ns), of_part in zip(parts, outputs, strict=True):
            if times_ns is not None:
                times_ns[:] = request.times_ns
            if not future.done():
                future.set_result(of_part)
    except BaseException as error:  # closed, say: each will meet it by itself
        _start_alone(parts)
        if not isinstance(error, (DeepschedError, MemoryError)):
            raise  # a signal handler's


def _hand_over(request: Request) -> None:
    if isinstance(request.tag, list):
        try:
            _hand_over_parts(request, request.tag)
        finally:
            request.tag = None
        return
    future: asyncio.Future[list[Any]] | None = request.tag
    request.tag = None
    if future is None or future.done():
        return  # cancelled or expired: nobody waits for it
    try:
        outputs = request.outputs()
    except BaseException as error:
        # Without the traceback, whose frames hold the request and all of its inputs.
        future.set_exception(error.with_traceback(None))
        if not isinstance(error, Exception):
            raise
        return
    future.set_result(outputs)


_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopInbox] = (
    weakref.WeakKeyDictionary()
)
_latest: tuple[Callable[[], asyncio.AbstractEventLoop | None], Callable[[], LoopInbox | None]] = (
    (lambda: None),
    (lambda: None),
)
_orphans: list[tuple[Inbox, int]] = []


def _inbox_of(loop: asyncio.AbstractEventLoop) -> LoopInbox:
    global _latest
    latest_loop, latest = _latest
    if latest_loop() is loop and (found := latest()) is not None:
        return found  # skips the weak dictionary in a program with one loop
    found = _inboxes.get(loop)
    if found is None:
        _reap()
        found = _inboxes[loop] = LoopInbox(loop)
    _latest = weakref.ref(loop), weakref.ref(found)
    return found


def _reap() -> None:
    """Frees requests that ended after their loop did."""
    for reference in _inboxes.keyrefs():  # a copy: other threads' loops may come and go
        loop = reference()
        if loop is not None and loop.is_closed() and (ended := _inboxes.pop(loop, None)):
            _orphans.append((ended.inbox, ended.num_under_way))
            ended.num_under_way = 0
    left = []
    # One at a time: a finalizer may append to the list, or come here, between any two lines.
    with contextlib.suppress(IndexError):
        while True:
            inbox, num_left = _orphans.pop()
            taken = inbox.take()
            _let_go(taken)
            num_left -= len(taken)
            if num_left > 0:
                left.append((inbox, num_left))
    _orphans.extend(left)


async def run_on_loop(
    model: Model,
    inputs: list[Any],
    timeout: float | None,
    priority: int,
    check_inputs: bool,
    block: bool,
    shrinks: bool,
    times_ns: list[int] | None = None,
    may_gather: bool = True,
) -> list[Any]:
    """See Engine.run_async. `inputs`: not to be changed. `may_gather`: whether it may run together
    with those of other tasks."""
    timeout = check_timeout(timeout)
    loop = asyncio.get_running_loop()
    ended = _inbox_of(loop)
    if (
        (ended.gathers and may_gather)
        and (timeout is None and priority == 0 and check_inputs and not shrinks)
        and model.most_together > 1
    ):
        gathered = await ended.gather(loop, model, inputs, times_ns)
        if isinstance(gathered, list):
            return gathered
        if gathered is not None:
            return await gathered.await_one(
                run_on_loop(
                    model, inputs, timeout, priority, check_inputs, block, shrinks, times_ns, False
                )
            )
    ended.num_under_way += 1  # before: Ctrl-C may come between a start and what follows it
    try:
        request = model.start(
            inputs, ended.inbox, None, timeout, priority, check_inputs, False, True, shrinks, True
        )
        if request is None and not block:
            model.reject()
        if request is None:
            request, timeout = await _start_when_there_is_room(
                model, inputs, ended.inbox, timeout, priority, check_inputs, shrinks
            )
    except KeyboardInterrupt:
        raise  # it may have been started: counted once too often does less harm than not at all
    except BaseException:
        ended.num_under_way -= 1
        raise
    if request.ran_inline:
        ended.num_under_way -= 1
        if loop.time() > ended.yields_at:  # a task that does nothing else leaves others their turn
            await ended.let_others_go_first(loop)
        if times_ns is not None:
            times_ns[:] = request.times_ns
        return request.outputs()
    # Time enough: what has ended is handed over by the loop, which we have not left since.
    future: asyncio.Future[list[Any]] = loop.create_future()
    request.tag = future
    ended.note(loop, model)
    timer = None
    if timeout is not None:
        timer = loop.call_later(timeout, _expire, model, request, future)
    try:
        outputs = await future
        if times_ns is not None:
            times_ns[:] = request.times_ns
        return outputs
    except (asyncio.CancelledError, GeneratorExit):
        model.cancel(request)
        request.tag = None  # else it keeps the loop alive until it is taken from the inbox
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _expire(model: Model, request: Request, future: asyncio.Future[list[Any]]) -> None:
    if not future.done():
        request.tag = None  # as if cancelled: its error's traceback holds the request
        future.set_exception(request.expiry())
        model.cancel(request, as_expired=True)


async def _start_when_there_is_room(
    model: Model,
    inputs: list[Any],
    inbox: Inbox,
    timeout: float | None,
    priority: int,
    check_inputs: bool,
    shrinks: bool,
) -> tuple[Request, float | None]:
    """Retries until the queue has room. Returns the request and what is left of `timeout`."""
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
                    "the request's timeout expired before the queue had room for it"
                )
        request = model.start(
            inputs, inbox, None, timeout, priority, check_inputs, False, False, shrinks
        )
        if request is not None:
            return request, timeout
