"""Which cores a context has: a lease, or those of the budget, whoever else uses them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from deepsched.checks import check_timeout
from deepsched.errors import LeaseError, OptionError
from deepsched.formatting import counted
from deepsched.machine.leases import Lease, holders, mark_used, take_lease
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Core, Topology
from deepsched.machine.workers import Workers, workers

logger = logging.getLogger("deepsched")

CORES = ("lease", "share")

# A worker that is to be replaced may be there for a while beside its successor.
_WORKER_TIMEOUT_S = 10.0


def lease_cores(
    cores: str | None, num_cores: int | None, timeout: float, pin: str, topology: Topology | None
) -> Lease | None:
    """A lease for a new context; None if it is to share its cores. See Context for the arguments.

    Raises:
        OptionError: an option has a value that is not allowed.
        LeaseError: too few cores are free.
    """
    timeout = check_timeout(timeout, "lease_timeout") or 0.0
    name = "cores" if cores is not None else "DEEPSCHED_CORES"
    chosen = os.environ.get("DEEPSCHED_CORES") or None if cores is None else cores
    if chosen not in (*CORES, None):
        raise OptionError(f"{name} must be 'lease' or 'share', got {chosen!r}")
    can_lease = pin != "none" and (topology is None or topology.is_local)
    if cores == "lease" and not can_lease:
        raise OptionError(
            "cores='lease' needs threads that are pinned to cores of this machine; leave "
            "pin='none' and another machine's topology out"
        )
    if chosen == "share" or not can_lease:
        return None
    group = workers()
    if chosen is None and group is None:
        return None
    machine = Topology.detect() if topology is None else topology
    if chosen == "lease":
        return take_lease(machine, _share_of(machine, num_cores, group), timeout)
    assert group is not None
    return _lease_of_worker(machine, num_cores, group, timeout)


def _lease_of_worker(
    machine: Topology, num_cores: int | None, group: Workers, timeout: float
) -> Lease | None:
    """Nobody asked for a lease: where there is none, the worker shares, and says so."""
    most = most_cores(machine)
    share = _share_of(machine, num_cores, group)
    if group.number is not None and group.number * (share or most) > most:
        logger.warning(
            "%d workers of %s with %s each share %s: %s. Fewer workers, or a smaller num_cores, "
            "have cores of their own",
            group.number, group.program, counted(share or most, "core"), counted(most, "core"),
            "requests of one slow those of the others",
        )  # fmt: skip
        return None
    if group.number is not None:
        timeout = max(timeout, _WORKER_TIMEOUT_S)
    try:
        return take_lease(machine, share, timeout)
    except LeaseError as error:
        logger.warning("this worker of %s has no cores of its own: %s", group.program, error)
        return None


def _share_of(machine: Topology, num_cores: int | None, group: Workers | None) -> int | None:
    """What is asked for, else an equal share of the budget."""
    if num_cores is not None or group is None:
        return num_cores
    if group.number is None:
        if most_cores(machine) > 1:
            _tell_of_pool(group.program)
        return 1
    return max(1, most_cores(machine) // group.number)


@functools.cache
def _tell_of_pool(program: str) -> None:
    logger.info(
        "this process is one of %s, of which the number is not known: it takes one core. "
        "DEEPSCHED_WORKERS=N or num_cores= gives it more",
        program,
    )


def mark_cores(cores: Sequence[Core]) -> Lease | None:
    """Tells other processes which cores a context uses without a lease, and this one's user which
    of them others have."""
    mark = mark_used(cores)
    if mark is not None and (others := holders(mark.cpus)):
        _warn_of_others("; ".join(map(str, others)))
    return mark


@functools.cache
def _warn_of_others(who: str) -> None:
    """Once in a process for each set of others."""
    logger.warning(
        "other processes use the same cores: %s. Each slows the others down; cores='lease' "
        "(DEEPSCHED_CORES=lease in the environment) gives each process cores of its own, and "
        "`deepsched lease list` shows who has what",
        who,
    )


def topology_of(lease: Lease, machine: Topology) -> Topology:
    """The part of the machine that is leased."""
    return replace(machine, cores=lease.cores)
