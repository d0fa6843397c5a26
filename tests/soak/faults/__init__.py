"""What goes wrong in a round. Each is a function of a Round, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable

from tests.soak.faults.damage import damage
from tests.soak.faults.descriptors import descriptors
from tests.soak.faults.forks import forks
from tests.soak.faults.kills import kills
from tests.soak.faults.moves import moves
from tests.soak.faults.reopening import reopening
from tests.soak.faults.signals import signals
from tests.soak.rounds import Round

FAULTS: dict[str, Callable[[Round], None]] = {
    fault.__name__: fault
    for fault in (reopening, moves, signals, descriptors, damage, forks, kills)
}
