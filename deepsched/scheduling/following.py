"""Follower: notices that the CPUs of this process have changed, and says so to its streams.

The mask, the cpuset and the quota are looked at once a second, on a thread whose own mask nobody
sets: threads that serve are pinned, which hides what the process may use. The kernel tells nobody
of a mask that changes, and of a cpuset or a quota only those who watch the very file that was
written to, which may be one that a container does not see. A look takes 0.3 ms.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol

from deepsched.errors import DeepschedError, LeaseError
from deepsched.machine.topology import Topology
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.python_thread import PythonThread

logger = logging.getLogger("deepsched")

_PERIOD_S = 1.0

# How long close() waits for a move that is under way.
_JOIN_S = 5.0


class Follows(Protocol):
    """Streams that can be moved; see streams.SharedStreams."""

    def fit(self, machine: Topology) -> None:
        """Moves to what there is."""


class Follower:
    """Watches until it is closed, or its streams are gone."""

    def __init__(self, streams: Follows, name: str) -> None:
        self._streams = weakref.ref(streams)
        self._name = name
        self._inbox = Inbox()  # for its wait, which a poke ends, under gevent too
        self._is_closing = False
        self._seen = Topology.detect()
        self._ident = 0
        self._thread = self._new_thread(self._watch)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. May be called again, by a finalizer on that very thread too."""
        self._is_closing = True
        self._inbox.poke()
        if self._ident != threading.get_ident():
            self._thread.join(_JOIN_S)

    def _new_thread(self, body: Callable[[], None]) -> PythonThread:
        return PythonThread(body, self._name, "the thread that follows the CPUs of this process")

    def _watch(self) -> None:
        self._ident = threading.get_ident()
        while not self._is_closing and self._streams() is not None:
            self._inbox.wait(_PERIOD_S)
            machine = Topology.detect()
            if machine != self._seen and not self._is_closing:
                # Not here: laying out sets the mask of its thread, which then hides what comes.
                mover = self._new_thread(partial(self._fit, machine))
                mover.start()
                while not mover.join(_PERIOD_S):
                    pass

    def _fit(self, machine: Topology) -> None:
        streams = self._streams()
        if streams is None:
            return
        try:
            streams.fit(machine)
        except LeaseError as error:  # others may give back theirs: tried again at the next look
            logger.warning("the streams stay where they are for now: %s", error)
            return
        except DeepschedError as error:
            logger.warning("the streams cannot follow the CPUs of this process: %s", error)
        self._seen = machine
