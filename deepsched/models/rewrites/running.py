"""Runs a form of a model that is tried, on a stream of its own, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from deepsched.machine.partition import Stream
from deepsched.models.rewrites.timing import TimedRuns
from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.model import Model
from deepsched.runtime.python_thread import PythonThread
from deepsched.runtime.session import Session, trim_heap
from deepsched.runtime.values import ValueInfo

T = TypeVar("T")

_TICK_S = 60.0
"""Between two looks whether the trial has ended, of which it tells by itself."""


class _Stopped(Exception):
    """The thread that waits for the trial was interrupted."""


class Trial:
    """Ends early if the thread that waits for it is interrupted."""

    def __init__(self, is_pinned: bool) -> None:
        """`is_pinned`: whether its threads are to be."""
        self._is_pinned = is_pinned
        self._is_stopped = False

    def in_thread(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises.

        The dispatcher hands long runs of the main thread to a worker, whose CPU time would be
        missed; and Ctrl-C is heard while the main thread waits.
        """
        results: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                results.append(call())
            except BaseException as error:
                failures.append(error)

        thread = PythonThread(body, "ds-trial", "a thread that tries forms of a model")
        thread.start()
        try:
            while not thread.join(_TICK_S):
                pass
        except BaseException:
            self._is_stopped = True
            while not thread.join(_TICK_S):
                pass
            raise
        if failures:
            raise failures[0]
        return results[0]

    @contextmanager
    def running(
        self, session: Session, stream: Stream
    ) -> Iterator[tuple[list[ValueInfo], TimedRuns]]:
        """The inputs of the session, and what runs it until the block ends."""
        dispatcher = Dispatcher(
            [list(stream.cpus) if self._is_pinned else None],
            queue_capacity=2,
            spin_ns=0,
            thread_prefix="ds-trial",
        )
        served = Model(dispatcher, [session])

        def run(inputs: list[Any]) -> Any:
            if self._is_stopped:
                raise _Stopped
            return served.run(inputs)

        try:
            yield served.inputs, TimedRuns(run, stream.cpus)
        finally:
            served.close()
            dispatcher.close()
            trim_heap()  # before another copy of the weights is made
