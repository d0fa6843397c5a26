"""Futures of requests, and the thread that resolves them.

The runtime's workers never take the GIL, so they cannot touch a future. They post ended requests to
an inbox; one Python thread per context takes them, many at a time, and resolves their futures. This
is a real thread, also where `threading` has become greenlets that take turns on one. Under eventlet
alone it is a greenlet as well, which waits for the inbox's eventfd with eventlet's `select`.

A signal handler or a finalizer may call anything here between any two lines, on a thread that is
inside any other: so nothing here takes a lock, and state changes by one atomic step of a built-in.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, NoReturn

from deepsched.checks import check_timeout
from deepsched.errors import CopyError, ForkError
from deepsched.invocation import eventlet
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.pool import fork_count
from deepsched.runtime.python_thread import PythonThread
from deepsched.runtime.request import Request

logger = logging.getLogger("deepsched")

# Until then a heap of deadlines is not searched for those of futures that are done.
_MIN_DEADLINES = 64

# How long close() waits for the resolver: it may have been called by a signal handler, on the
# thread that holds what the resolver waits for.
_JOIN_S = 5.0


class RequestFuture(Future[list[Any]]):
    """The future of one request; `result()` returns or raises what `Engine.run` would.

    `cancel` works on a running request too: it is stopped at its next operator.
    """

    _model: Model
    _request: Request | None = None

    def __init__(self) -> None:
        super().__init__()
        self._num_forks = fork_count()

    def cancel(self) -> bool:
        """Withdraws the request from the queue, or stops its run. False if it has ended already, or
        belongs to a parent process."""
        if self._is_forked:
            return False
        if not super().cancel():
            return False
        # One of those who cancel at once goes on: setdefault is atomic.
        token = object()
        if self.__dict__.setdefault("_canceller", token) is token:
            self.set_running_or_notify_cancel()  # wakes its waiters
            request = self._request
            if request is not None:
                self._model.cancel(request)
        return True

    def running(self) -> bool:
        """Whether it runs right now."""
        request = self._request
        return request is not None and request.is_running and not self.done()

    # In a forked child without the lock, which a thread of the parent may have held as it forked.

    def done(self) -> bool:
        """Whether it has ended, in whatever way; in a forked child, whether it had at the fork."""
        return self._state in _ENDED if self._is_forked else super().done()

    def cancelled(self) -> bool:
        """Whether it was cancelled; in a forked child, before the fork."""
        return self._state in _ENDED[:2] if self._is_forked else super().cancelled()

    def __repr__(self) -> str:
        return (
            f"<RequestFuture of a parent process: {self._state.lower()}>"
            if self._is_forked
            else super().__repr__()
        )

    def result(self, timeout: float | None = None) -> list[Any]:
        """Outputs of the request; waits for them.

        Raises:
            ForkError: it belongs to a parent process, and had not ended before the fork.
            What `Engine.run` raises; TimeoutError: `timeout` seconds have passed;
            concurrent.futures.CancelledError: it was cancelled.
        """
        if self._is_forked:
            self._check_fork()
            if (error := self.exception()) is not None:
                raise error
            outputs: list[Any] = self._result  # type: ignore[assignment]  # set before the state
            return outputs
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None; waits for the end as `result` does."""
        if self._is_forked:
            self._check_fork()
            if self.cancelled():
                raise CancelledError
            return self._exception
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[list[Any]]], object]) -> None:
        """Calls `fn` with the future when it ends: on the context's Python thread, or at once if it
        has ended already. Exceptions are logged."""
        self._check_fork()
        if self._is_forked:
            _call_back(fn, self)
        else:
            super().add_done_callback(lambda future: _call_back(fn, future))

    def __reduce__(self) -> NoReturn:
        raise CopyError(
            "a future cannot be copied or pickled: its request ends in this process; send what its "
            "result() returns"
        )

    @property
    def _is_forked(self) -> bool:
        return self._num_forks != fork_count()

    def _check_fork(self) -> None:
        if self._is_forked and not self.done():
            raise ForkError(
                "this request was submitted before os.fork() and ends in the parent only; submit "
                "it again, to an engine created in the child"
            )


_ENDED = "CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"
"""The states of a Future that has ended; the first two: cancelled."""


def _call_back(fn: Callable[[Future[list[Any]]], object], future: Future[list[Any]]) -> None:
    """Futures log an Exception of a callback; anything else would end the thread that resolves, and
    with it every later future."""
    try:
        fn(future)
    except Exception:
        raise
    except BaseException:
        if threading.get_native_id() == os.getpid():
            raise  # in the main thread, where it may be Ctrl-C
        logger.critical("a future's callback %r raised", fn, exc_info=True)


class FutureResolver:
    """Submits requests and resolves their futures. Its thread starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_greenlet = eventlet.is_in_charge()
        self._inbox = Inbox(with_eventfd=self._is_greenlet)
        self._order = itertools.count()  # breaks ties: futures do not compare
        self._new_deadlines: deque[_Deadline] = deque()
        """Those that the thread has yet to see."""
        self._deadlines: list[_Deadline] = []
        """A heap; the thread's own."""
        self._max_deadlines = _MIN_DEADLINES
        self._ended: deque[Request] = deque()
        """Taken from the inbox, and not settled yet."""
        self._thread: dict[str, _Thread] = {}
        """The thread that resolves, once it has started."""
        self._ident = 0
        """What `threading` calls it."""
        self._is_closing = False

    def submit(
        self,
        model: Model,
        inputs: list[Any],
        timeout: float | None,
        priority: int,
        check_inputs: bool,
        block: bool,
        shrinks: bool,
    ) -> RequestFuture:
        """See Engine.submit."""
        if timeout is not None:
            timeout = check_timeout(timeout)
        future = RequestFuture()
        future._model = model
        began = time.monotonic()  # the timeout covers the wait for room
        if not self._thread and not self._is_closing:
            model.check_fork()
            self._start_thread()
        accepted = model.start(
            inputs, self._inbox, future, timeout, priority, check_inputs, block, False, shrinks
        )
        if accepted is None:
            model.reject()
        future._request = accepted
        # By its state itself: this is the hot path, and a method takes the lock.
        if future._state in _ENDED:
            if future._state != "FINISHED":  # cancelled, by whoever got hold of it before that line
                model.cancel(accepted)
            future._request = None  # nothing needs the inputs any more
        elif timeout is not None:
            self._new_deadlines.append((began + timeout, next(self._order), weakref.ref(future)))
            self._inbox.poke()
        return future

    def close(self) -> None:
        """Resolves what has ended and ends the thread. Nothing may be posted any more: the models
        are closed and the workers have ended. May be called again."""
        self._is_closing = True
        thread = self._thread.get("resolver")
        if thread is not None and self._ident != threading.get_ident():
            self._inbox.poke()
            if not thread.join(_JOIN_S):  # it ends by itself, once it is let
                logger.warning("%s still calls back", self._name)
                return
        # Of two that close, the other's worker may have posted after the thread took its last.
        self._settle_ended()

    def _start_thread(self) -> None:
        # The interpreter waits for other threads before it runs the exit handler that closes the
        # context, so it must not wait for this one.
        thread: _Thread
        if self._is_greenlet:
            thread = _Greenlet(lambda: self._resolve(thread), self._name)
        else:
            thread = PythonThread(
                lambda: self._resolve(thread), self._name, "the thread that resolves futures"
            )
        thread.start()
        # The thread does this too, should Ctrl-C come before we do. Here, so that the next submit()
        # starts no other, though this one has yet to run.
        self._thread.setdefault("resolver", thread)

    def _resolve(self, me: _Thread) -> None:
        # Several may have been started, by callers that did not see one another: one stays.
        if self._thread.setdefault("resolver", me) is not me:
            return
        self._ident = threading.get_ident()
        while True:
            is_closing = self._is_closing  # read before take(): what it returns then is the rest
            num_ended = self._settle_ended()
            late = self._expire()
            if is_closing:
                return
            if not num_ended:
                self._wait(late)

    def _wait(self, timeout_s: float) -> None:
        if self._is_greenlet:
            select.select([self._inbox.eventfd], [], [], None if timeout_s < 0 else timeout_s)
        else:
            self._inbox.wait(timeout_s)

    def _settle_ended(self) -> int:
        """Settles what has ended; returns how much that was.

        Should an exception come out of it (Ctrl-C in close()), the rest is kept for the next call.
        Its own function, so that an idle thread holds on to no request.
        """
        self._ended.extend(self._inbox.take())
        num_settled = 0
        while True:
            try:
                request = self._ended.popleft()
            except IndexError:
                return num_settled
            _settle(request)
            num_settled += 1

    def _expire(self) -> float:
        """Fails the futures whose deadline has passed, wherever their requests are.

        A worker would notice only when it pops the request, which may be behind long runs. Returns
        the seconds until the next deadline; -1 if there is none.
        """
        while self._new_deadlines:
            heapq.heappush(self._deadlines, self._new_deadlines.popleft())
        if len(self._deadlines) > self._max_deadlines:
            # Else it would grow with the rate times the longest timeout.
            self._deadlines = [entry for entry in self._deadlines if _is_pending(entry[2]())]
            heapq.heapify(self._deadlines)
            self._max_deadlines = max(_MIN_DEADLINES, 2 * len(self._deadlines))
        while self._deadlines:
            deadline, _, reference = self._deadlines[0]
            future = reference()
            if future is not None and _is_pending(future):
                left = deadline - time.monotonic()
                if left > 0:
                    return left
                _fail_late(future)
            heapq.heappop(self._deadlines)
        return -1.0


class _Greenlet:
    """PythonThread's methods, for a thread of eventlet's."""

    def __init__(self, body: Callable[[], object], name: str) -> None:
        self._thread = threading.Thread(target=body, name=name, daemon=True)
        self._has_ended = False

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        if not self._has_ended:  # asked again at exit, eventlet has no threads any more
            self._thread.join(timeout_s)
            self._has_ended = not self._thread.is_alive()
        return self._has_ended


_Thread = PythonThread | _Greenlet

_Deadline = tuple[float, int, "weakref.ref[RequestFuture]"]


def _is_pending(future: RequestFuture | None) -> bool:
    return future is not None and not future.done()


def _fail_late(future: RequestFuture) -> None:
    request = future._request
    if request is not None:
        expiry = request.expiry()  # before it is stopped
        future._model.cancel(request, as_expired=True)
        _fail(future, expiry)


def _settle(request: Request) -> None:
    future: RequestFuture = request.tag
    request.tag = None  # breaks the cycle: the future refers to the request
    try:
        if future._state in _ENDED:  # cancelled, or late
            return
        try:
            outputs = request.outputs()
        except BaseException as error:
            _fail(future, error)
            if not isinstance(error, Exception):  # Ctrl-C: it ends all the same
                raise
            return
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            future.set_result(outputs)
    finally:
        # Its inputs go with it. Last: submit() may set it until the future has ended.
        future._request = None


def _fail(future: RequestFuture, error: BaseException) -> None:
    # Without the traceback, whose frames hold the request and all of its inputs.
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error.with_traceback(None))
