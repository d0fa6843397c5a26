"""RequestMap: many requests from one Python thread, enough under way to keep every stream busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deepsched.checks import check_optional_integer
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.request import Request

# Work to keep queued for each stream: more than the producing thread is likely to be descheduled.
_AHEAD_NS = 500_000
_MAX_AHEAD = 64


class RequestMap:
    """Runs a request for each item; see Engine.map."""

    def __init__(
        self,
        model: Model,
        in_order: Callable[[Any], list[Any]],
        in_flight: int | None,
        ordered: bool,
        priority: int,
        check_inputs: bool,
        shrinks: bool,
    ) -> None:
        self._model = model
        self._in_order = in_order
        self._in_flight = check_optional_integer("in_flight", in_flight, 1)
        self._ordered = ordered
        self._priority = priority
        self._check_inputs = check_inputs
        self._shrinks = shrinks
        self._inbox = Inbox()
        self._limit = self._choose_limit()
        self._sent: deque[Request] = deque()  # not yielded yet, the oldest first
        self._num_under_way = 0  # not taken from the inbox yet
        self._is_exhausted = False
        self._failure: Exception | None = None  # raised by the iterable, or by an item's inputs

    def run(self, items: Iterable[Any]) -> Iterator[list[Any]]:
        """Yields the outputs of each item."""
        source = iter(items)
        sent = self._sent
        arrived: deque[Request] = deque()
        try:
            while True:
                while not self._is_exhausted and len(sent) < self._limit:
                    self._send_from(source)
                if not sent:
                    break
                if self._ordered:
                    while not sent[0].tag:
                        self._take()
                    yield sent.popleft().outputs()
                else:
                    if not arrived:
                        arrived.extend(self._take())
                    request = arrived.popleft()
                    sent.remove(request)
                    yield request.outputs()
            if self._failure is not None:
                raise self._failure
        finally:
            for request in sent:
                self._model.cancel(request)
            self._model.orphan(self._inbox, self._num_under_way)

    def _choose_limit(self) -> int:
        if self._in_flight is not None:
            return self._in_flight
        typical_ns = self._model.typical_ns or _AHEAD_NS
        ahead = min(max(2, _AHEAD_NS // typical_ns), _MAX_AHEAD)
        dispatcher = self._model.dispatcher
        return min(dispatcher.num_streams * ahead, dispatcher.backlog.capacity)

    def _send_from(self, source: Iterator[Any]) -> None:
        try:
            item = next(source)
        except StopIteration:
            self._is_exhausted = True
            return
        except Exception as failure:
            self._is_exhausted, self._failure = True, failure
            return
        self._num_under_way += 1  # before: Ctrl-C may come between a start and what follows it
        try:
            inputs = item if type(item) is list else self._in_order(item)
            request = self._model.start(
                inputs,
                self._inbox,
                False,
                None,
                self._priority,
                self._check_inputs,
                True,
                True,
                self._shrinks,
            )
        except Exception as failure:  # StopIteration too, if an input's __array__ raises it
            # Raised in its item's place, after the results of those that have been sent.
            self._is_exhausted, self._failure = True, failure
            self._num_under_way -= 1
        else:
            assert request is not None
            self._sent.append(request)

    def _take(self) -> list[Request]:
        """Ended requests, at least one; serves the backlog itself where that beats waiting."""
        while not (ended := self._inbox.take()):
            if not self._model.help(self._limit // 8 + 1):
                self._inbox.wait()
        self._num_under_way -= len(ended)
        for request in ended:
            request.tag = True  # has ended
        self._model = self._model.current  # its streams may have moved
        self._limit = self._choose_limit()
        return ended
