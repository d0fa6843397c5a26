"""Calls on the main thread, whose signal handlers raise at any moment of them."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from deepsched import Engine
from tests.soak.fleet import Fleet, Served
from tests.soak.kinds import Kind
from tests.soak.ledger import Ledger

SIGNALS = (signal.SIGINT, signal.SIGUSR1)

OPENINGS_STRUCK = "engines that a signal ended early as they opened or closed"


class Struck(Exception):
    """What the handler of SIGUSR1 raises."""


class MainThread:
    """Its handlers raise within `exposed`, once, and do nothing elsewhere: there the soak keeps
    its books."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_exposed = False
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_exposed:
            self._is_exposed = False
            raise KeyboardInterrupt if number == signal.SIGINT else Struck

    def exposed(self, body: Callable[[], Any]) -> Any:
        """What `body` returns; None if a signal has ended it early."""
        try:
            self._is_exposed = True
            outcome = body()
            self._is_exposed = False
            return outcome
        except (KeyboardInterrupt, Struck) as error:
            self._ledger.count(f"calls ended by {type(error).__name__}")
            return None

    def work(
        self, fleet: Fleet, kinds: list[Kind], rng: random.Random, is_over: threading.Event
    ) -> None:
        """Calls and opens engines until it `is_over`."""
        slots = [slot for slot in fleet.slots if not slot.may_close]
        while not is_over.is_set():
            if not slots or rng.random() < 0.1:
                self._open(rng.choice(kinds))
            else:
                self._call(rng.choice(slots).current, rng)

    def _call(self, served: Served, rng: random.Random) -> None:
        call = served.kind.call(rng, may_fail=False)
        engine = served.engine
        ways: list[Callable[[], list[Any]]] = [
            lambda: engine.run(call.inputs),
            lambda: engine.submit(call.inputs).result(60),
            lambda: next(engine.map([call.inputs])),
        ]
        outputs = self.exposed(rng.choice(ways))
        if outputs is None:
            served.tally.note("struck by a signal", is_certain=False)
            return
        if not served.kind.is_right(call, outputs):
            self._ledger.breach(f"a wrong answer of {engine} in the main thread")
        served.tally.note("done", is_certain=True)

    def _open(self, kind: Kind) -> None:
        """What a signal ends early is closed by the garbage collector."""

        def open_and_close() -> bool:
            with Engine(kind.path, None, **kind.options):
                return True

        if self.exposed(open_and_close):
            self._ledger.count("engines opened on the main thread")
        else:
            self._ledger.count(OPENINGS_STRUCK)
