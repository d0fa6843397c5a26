"""Signals to the main thread, whose handlers raise."""

from __future__ import annotations

import signal
import threading

from tests.soak.main_thread import SIGNALS
from tests.soak.rounds import Round


def signals(round: Round) -> None:
    """Most fall into a call, or into the opening or the close of an engine."""
    main = threading.main_thread().ident
    assert main is not None
    for _ in range(40):
        round.pause(0.05)
        signal.pthread_kill(main, round.rng.choice(SIGNALS))
        round.ledger.count("signals")
