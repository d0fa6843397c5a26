"""RequestMap: many requests from one Python thread, enough under way to keep every stream busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deepsched.checks import check_optional_integer
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.parts import outputs_of_parts, start_many
from deepsched.runtime.request import Request

# Work to keep queued for each stream: more than the producing thread is likely to be descheduled.
_AHEAD_NS = 500_000
_MAX_AHEAD = 64
_BATCHES_AHEAD = 8

# Of the requests that may be under way, so many end before as many follow, at once: what waits
# together can run together.
_PART = 4


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
        self._num_ahead = 0  # items that these are made of
        self._is_exhausted = False
        self._failure: Exception | None = None  # raised by the iterable, or by an item's inputs

    def run(self, items: Iterable[Any]) -> Iterator[list[Any]]:
        """Yields the outputs of each item."""
        source = iter(items)
        sent = self._sent
        arrived: deque[Request] = deque()
        try:
            while True:
                missing = self._limit - self._num_ahead
                if missing * _PART >= self._limit and not self._is_exhausted:
                    self._send_from(source, missing)
                if not sent:
                    break
                if self._ordered:
                    while not sent[0].tag:
                        self._take()
                    request = sent.popleft()
                else:
                    if not arrived:
                        arrived.extend(self._take())
                    request = arrived.popleft()
                    sent.remove(request)
                if request.parts_inputs is None:
                    self._num_ahead -= 1
                    yield request.outputs()
                else:
                    self._num_ahead -= len(request.parts_inputs)
                    yield from outputs_of_parts(request) or self._one_by_one(request.parts_inputs)
            if self._failure is not None:
                raise self._failure
        finally:
            for request in sent:
                self._model.cancel(request)
            self._model.orphan(self._inbox, sum(not request.tag for request in sent))

    def _choose_limit(self) -> int:
        if self._in_flight is not None:
            return self._in_flight
        most = max(_MAX_AHEAD, _BATCHES_AHEAD * self._model.most_together)
        ahead = min(max(2, _AHEAD_NS // (self._model.request_ns or _AHEAD_NS)), most)
        dispatcher = self._model.dispatcher
        return min(dispatcher.num_streams * ahead, dispatcher.backlog.capacity)

    def _send_from(self, source: Iterator[Any], most: int) -> None:
        try:
            num_sent = start_many(
                self._model,
                source,
                self._in_order,
                self._inbox,
                self._sent,
                most,
                self._priority,
                self._check_inputs,
                self._shrinks,
            )
            self._num_ahead += num_sent
            self._is_exhausted = num_sent < most
        except Exception as failure:
            # Raised in its item's place, after the results of those that have been sent.
            self._is_exhausted, self._failure = True, failure

    def _one_by_one(self, parts: list[list[Any]]) -> Iterator[list[Any]]:
        """The outputs of items whose common run has failed, for whatever reason."""
        for inputs in parts:
            yield self._model.run(inputs, None, self._priority, self._check_inputs, self._shrinks)
        self._model.note_needless_failure()

    def _take(self) -> list[Request]:
        """Ended requests, at least one; serves the backlog itself where that beats waiting."""
        while not (ended := self._inbox.take()):
            if not self._model.help(self._limit // 8 + 1):
                self._inbox.wait()
        for request in ended:
            request.tag = True  # has ended
        self._model = self._model.current  # its streams may have moved
        self._limit = self._choose_limit()
        return ended
