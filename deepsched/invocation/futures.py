"""Futures of requests, and the thread that resolves them.

The runtime's workers never take the GIL, so they cannot touch a future. They post ended requests to
an inbox; one Python thread per context takes them, many at a time, and resolves their futures.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
import weakref
from concurrent.futures import Future, InvalidStateError
from typing import Any

from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.request import Request


class RequestFuture(Future[list[Any]]):
    """The future of one request; `result()` returns or raises what `Engine.run` would.

    `cancel` works on a running request too: it is stopped at its next operator.
    """

    _model: Model
    _request: Request | None = None
    _is_cancelling = False
    _cancelling = threading.Lock()  # of all futures: cancelling is rare

    def cancel(self) -> bool:
        """Withdraws the request from the queue, or stops its run. False if it has ended already."""
        if not super().cancel():
            return False
        # Not around the line above, which runs callbacks, which may cancel other futures.
        with self._cancelling:
            is_first, self._is_cancelling = not self._is_cancelling, True
        if is_first:
            self.set_running_or_notify_cancel()  # wakes its waiters
            if self._request is not None:
                self._model.cancel(self._request)
        return True

    def running(self) -> bool:
        """Whether it runs right now."""
        return not self.done() and self._request is not None and self._request.is_running


class FutureResolver:
    """Submits requests and resolves their futures. Its thread starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inbox = Inbox()
        self._deadlines: list[tuple[float, int, weakref.ref[RequestFuture]]] = []
        self._order = itertools.count()  # breaks ties: futures do not compare
        # Reentrant: the garbage collector may run anything while we hold it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def submit(
        self,
        model: Model,
        inputs: list[Any],
        timeout: float | None,
        priority: int,
        check_inputs: bool,
        block: bool,
    ) -> RequestFuture:
        """See Engine.submit."""
        future = RequestFuture()
        future._model = model
        began = time.monotonic()  # the timeout covers the wait for room
        with self._lock:
            if self._thread is None and not self._is_closing:
                self._start_thread()
        accepted = model.start(inputs, self._inbox, future, timeout, priority, check_inputs, block)
        if accepted is None:
            model.reject()
        future._request = accepted
        if future.cancelled():  # by whoever got hold of it before the line above
            model.cancel(accepted)
        if timeout is not None:
            with self._lock:
                entry = began + timeout, next(self._order), weakref.ref(future)
                heapq.heappush(self._deadlines, entry)
            self._inbox.poke()
        return future

    def close(self) -> None:
        """Resolves what has ended and joins the thread. Nothing may be posted any more: the models
        are closed and the workers have ended."""
        with self._lock:
            self._is_closing = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._inbox.poke()
            thread.join()

    def _start_thread(self) -> None:
        # A daemon: the interpreter waits for other threads before it runs the exit handler that
        # closes the context, so this one would never end.
        self._thread = threading.Thread(target=self._resolve, name=self._name, daemon=True)
        self._thread.start()

    def _resolve(self) -> None:
        while True:
            is_closing = self._is_closing  # read before take(): what it returns then is the rest
            ended = self._inbox.take()
            for request in ended:
                _settle(request)
            late = self._expire()
            if is_closing:
                return
            if not ended:
                self._inbox.wait(late)

    def _expire(self) -> float:
        """Fails the futures whose deadline has passed, wherever their requests are.

        A worker would notice only when it pops the request, which may be behind long runs. Returns
        the seconds until the next deadline; -1 if there is none.
        """
        while True:
            with self._lock:
                if not self._deadlines:
                    return -1.0
                deadline, _, reference = self._deadlines[0]
                future = reference()
                is_pending = future is not None and not future.done()
                left = deadline - time.monotonic()
                if left > 0 and is_pending:
                    return left
                heapq.heappop(self._deadlines)
            if future is not None and is_pending and future._request is not None:
                expiry = future._request.expiry()  # before it is stopped
                future._model.cancel(future._request, as_expired=True)
                _fail(future, expiry)


def _settle(request: Request) -> None:
    future: RequestFuture = request.tag
    request.tag = None  # breaks the cycle: the future refers to the request
    if future.done():
        return
    try:
        outputs = request.outputs()
    except Exception as error:
        _fail(future, error)
        return
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_result(outputs)


def _fail(future: RequestFuture, error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)
