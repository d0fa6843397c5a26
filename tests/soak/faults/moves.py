"""Contexts move to more or fewer cores; leases come and go beside them."""

from __future__ import annotations

import itertools

from deepsched import Topology
from deepsched.errors import LeaseError, StreamConfigError
from deepsched.machine.leases import take_lease
from tests.soak.rounds import Round


def moves(round: Round) -> None:
    """No request is lost for a move, and no two leases have a core in common."""
    rng, machine = round.rng, Topology.detect()
    for _ in range(4):
        round.pause(0.3)
        context = rng.choice(round.fleet.contexts)
        most = len(context.topology.cores) if context.lease is None else len(machine.cores)
        num_cores = round.pick(most + 1) or None
        try:
            context.resize(num_cores)
            round.ledger.count("moves")
        except LeaseError:
            round.ledger.count("leases refused")
        except StreamConfigError:
            # On this machine there may be fewer by now: a cpuset or a quota has changed.
            if num_cores in (None, 1) or not context.topology.is_local:
                raise
            round.ledger.count("moves refused")
        try:
            with take_lease(machine, 1) as lease:
                leases = [lease] + [it.lease for it in round.fleet.contexts if it.lease]
                for one, other in itertools.combinations(leases, 2):
                    if not set(one.cpus).isdisjoint(other.cpus):
                        round.ledger.breach(f"two leases have a CPU in common: {one}, {other}")
            round.ledger.count("leases")
        except LeaseError:
            round.ledger.count("leases refused")
