"""What goes wrong in a round. Each is a function of a Round, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable

from tests.soak.faults.clock import clock, steps
from tests.soak.faults.damage import damage
from tests.soak.faults.descriptors import descriptors
from tests.soak.faults.disk import disk, filling
from tests.soak.faults.forks import forks
from tests.soak.faults.kills import kills
from tests.soak.faults.memory import memory
from tests.soak.faults.moves import moves
from tests.soak.faults.quotas import quotas
from tests.soak.faults.reopening import reopening
from tests.soak.faults.signals import signals
from tests.soak.faults.starving import starving
from tests.soak.rounds import Round

Fault = Callable[[Round], None]


def _by_name(*faults: Fault) -> dict[str, Fault]:
    return {fault.__name__: fault for fault in faults}


IN_EACH_ROUND = _by_name(reopening, moves, signals, descriptors, damage, forks, kills)
IN_TURN = _by_name(quotas, memory, disk, clock, starving)
"""Each takes longer than all others of a round together: one of them in a round."""
IN_CHILDREN = _by_name(filling, steps)
"""Only where a child's surroundings are made for them."""

FAULTS = {**IN_EACH_ROUND, **IN_TURN, **IN_CHILDREN}


def faults_of(number: int) -> dict[str, Fault]:
    """Those of a round, unless others are asked for."""
    in_turn = list(IN_TURN)[number % len(IN_TURN)]
    return {**IN_EACH_ROUND, in_turn: IN_TURN[in_turn]}
