"""Which other processes of deepsched have the cores."""

from __future__ import annotations

from dataclasses import asdict

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.errors import LeaseError
from deepsched.machine.leases import check_lease_file, holders


def leases(host: Host) -> Check:
    """Whether other processes of deepsched have cores that this one may use."""
    name = "leases"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    try:
        check_lease_file()
    except LeaseError as error:
        return unknown(name, str(error))
    others = holders(host.topology.cpus)
    data = {"holders": [asdict(holder) for holder in others]}
    if not others:
        return ok(name, "no other process of deepsched has these cores", **data)
    found = "; ".join(map(str, others))
    if all(holder.is_lease for holder in others):
        return ok(name, found, "cores='lease' takes of the others.", **data)
    return warn(
        name,
        found,
        "Engines that are made here without a lease use the same cores, and each slows the others "
        "down.",
        "Start all of them with DEEPSCHED_CORES=lease in the environment, or with cores='lease' "
        "and a num_cores: each then has cores of its own.",
        **data,
    )
