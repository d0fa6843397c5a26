"""Little memory: a control group in which engines just have room."""

from __future__ import annotations

import pytest

from tests.soak.faults.harsh import soak_within
from tests.soak.rounds import Round
from tests.support.cgroups import limits

_BYTES = 256 << 20


def memory(round: Round) -> None:
    """Nothing grows until the kernel kills."""
    try:
        with limits(memory=_BYTES) as group:
            soak_within(round, "memory", group.start, "reopening,moves,signals")
    except pytest.skip.Exception as why:
        round.ledger.skip("memory", str(why))
