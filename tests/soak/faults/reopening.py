"""Engines are closed under their callers, and others take their place."""

from __future__ import annotations

from tests.soak.rounds import Round


def reopening(round: Round) -> None:
    """Callers that are inside see ClosedError or their answer."""
    slots = [slot for slot in round.fleet.slots if slot.may_close]
    for _ in range(6):
        round.pause(0.3)
        round.rng.choice(slots).reopen()
        round.ledger.count("engines closed under load")
