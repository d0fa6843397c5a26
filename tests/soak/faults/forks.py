"""os.fork under load."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import traceback

from deepsched import Engine
from deepsched.errors import ForkError
from tests.soak.kinds import Kind
from tests.soak.rounds import Round

_MAX_S = 60


def forks(round: Round) -> None:
    """In the child the parent's engines raise ForkError, and new ones work."""
    for _ in range(2):
        round.pause(0.7)
        seed = round.rng.randrange(2**32)
        slots = [slot for slot in round.fleet.slots if not slot.may_close]
        engines = [slot.current.engine for slot in slots]
        kind = round.rng.choice(round.kinds)
        pid = os.fork()
        if pid == 0:
            _in_child(engines, kind, seed)
        _, status = os.waitpid(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            round.ledger.breach(f"a forked child ended with {code}")
        round.ledger.count("forks")


def _in_child(engines: list[Engine], kind: Kind, seed: int) -> None:
    """Ends the process. Nothing of the soak's is used here: its locks may be held."""
    code = 1
    try:
        # Not faulthandler's own timer: it waits for its thread, which is the parent's.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(_MAX_S)
        rng = random.Random(seed)
        call = kind.call(rng, may_fail=False)
        for engine in engines:
            try:
                engine.run(call.inputs)
            except ForkError:
                continue
            raise AssertionError("a parent's engine has run in a child")
        with Engine(kind.path, None, **kind.options) as engine:
            assert kind.is_right(call, engine.run(call.inputs))
            assert kind.is_right(call, engine.submit(call.inputs).result(_MAX_S))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
