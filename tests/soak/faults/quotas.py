"""A CPU quota and a cpuset that change while engines serve."""

from __future__ import annotations

import os

import pytest

from tests.soak.faults.harsh import soak_within
from tests.soak.rounds import Round
from tests.support.cgroups import limits


def quotas(round: Round) -> None:
    """Contexts follow, or serve on with what they have."""
    cpus = sorted(os.sched_getaffinity(0))
    every = ",".join(map(str, cpus))
    try:
        with limits(cpus=(100_000, 100_000), cpuset=every) as group:

            def disturb() -> None:
                group.set_cpus(round.rng.choice([30_000, 100_000, 250_000]), 100_000)
                group.set_cpuset(round.rng.choice([every, str(round.rng.choice(cpus))]))

            soak_within(round, "quotas", group.start, "reopening,moves", disturb)
    except pytest.skip.Exception as why:
        round.ledger.skip("quotas", str(why))
