"""A round: a fleet, its callers, and the faults that they meet."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from deepsched import Engine
from tests.soak.callers import WAYS, Caller
from tests.soak.fleet import Fleet
from tests.soak.kinds import Kind
from tests.soak.ledger import Ledger
from tests.soak.main_thread import MainThread

_LEAST_BURSTS = 10


class Round:
    """What a fault needs to know; a copy with its own `rng` for each."""

    def __init__(
        self, name: str, fleet: Fleet, kinds: list[Kind], folder: Path, ledger: Ledger
    ) -> None:
        self.rng = random.Random(name)
        self.fleet = fleet
        self.kinds = kinds
        self.folder = folder
        self.cache = folder / "cache"
        self.ledger = ledger

    def pause(self, longest_s: float) -> None:
        """For a random time; load goes on."""
        threading.Event().wait(self.rng.random() * longest_s)

    def pick(self, number: int) -> int:
        """One of so many, by one draw however many they are: what comes after is the same."""
        return int(self.rng.random() * number)

    def check_answer(self, engine: Engine, kind: Kind) -> None:
        """One call of an engine that nobody else has."""
        call = kind.call(self.rng, may_fail=False)
        outputs = engine.run(call.inputs)
        if not kind.is_right(call, outputs):
            self.ledger.breach(f"a wrong answer of {engine}, opened anew: {outputs}")


def run_round(
    name: str,
    faults: Mapping[str, Callable[[Round], None]],
    kinds: list[Kind],
    folder: Path,
    ledger: Ledger,
    main_thread: MainThread,
) -> None:
    """One round, whose choices follow from its name."""
    fleet = Fleet(kinds, random.Random(name), ledger)
    is_over = threading.Event()
    callers = [
        ledger.thread(
            way.__name__,
            Caller(fleet, random.Random(f"{name}/{number}"), ledger).until,
            is_over,
            way,
            _LEAST_BURSTS,
        )
        for number, way in enumerate((*WAYS, Caller.by_run, Caller.by_future))
    ]
    at_work = [
        ledger.thread(fault, body, Round(f"{name}/{fault}", fleet, kinds, folder, ledger))
        for fault, body in faults.items()
    ]

    def wait() -> None:
        for thread in at_work:
            thread.join()
        is_over.set()

    waiting = ledger.thread("waiting", wait)
    rng = random.Random(f"{name}/main")
    ledger.guarded("the main thread", main_thread.work, fleet, kinds, rng, is_over)
    for thread in (*callers, waiting):
        thread.join()
    fleet.close(random.Random(f"{name}/close"))
