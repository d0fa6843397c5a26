"""The latency between cores, measured, beside the caches that the kernel reports."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.machine.contention import ContentionMonitor, is_contended
from deepsched.machine.latency import is_change
from deepsched.machine.measured import compare, look
from deepsched.machine.probe import Look

_BETWEEN_LOOKS_S = 2.0
_LOOK_S = 1.0
"""How long each look takes at most."""


def core_latency(host: Host) -> Check:
    """Whether cores share caches as the kernel says, and go on to."""
    name = "core_latency"
    topology = host.topology
    if not topology.is_local:
        return unknown(name, NOT_LOCAL)
    if len(topology.cores) == 1:
        return ok(name, "one core: no latency between cores")
    monitor = ContentionMonitor(topology.cpus)
    looks = [look(topology, _LOOK_S)]
    if host.watch:
        time.sleep(_BETWEEN_LOOKS_S)
        looks.append(look(topology, _LOOK_S))
    others = monitor.others_share() if host.watch else None
    return judge(host, looks, others)


def judge(host: Host, looks: list[Look], others_share: float | None) -> Check:
    """What follows from one look or two."""
    name = "core_latency"
    seen = [it for it in looks if not it.num_missing]
    last = (seen or looks)[-1]
    findings = [it for it in compare(host.topology, last) if it.is_disagreement]
    data = {
        "round_trips_ns": [_range(it) for it in looks],
        "memory_latency_ns": None if math.isnan(last.memory_ns) else last.memory_ns,
        "findings": [it.to_dict() for it in findings],
        "others_share": others_share,
    }
    if last.refused:
        return unknown(name, f"no thread could be pinned: {last.refused}", **data)
    if not seen:
        return unknown(name, "not measured: others kept the cores busy", **data)
    found = ", then ".join(_in_words(it) for it in seen)
    if is_contended(others_share):
        found += f" (others used {others_share:.0%} of a CPU meanwhile, so this is unreliable)"
    if len(seen) > 1 and is_change(seen[0].round_trips_ns, last.round_trips_ns):
        return warn(
            name,
            f"changed within {_BETWEEN_LOOKS_S:g} s: {found}",
            "The host moves the virtual CPUs between cores that share a cache and cores that do "
            "not. What pays in one phase does not in the other: figures of different phases do "
            "not compare, and a request on all cores may be no faster than on one.",
            "Prefer multi_stream or elastic to single_stream, whose requests need all cores near "
            "one another. Ask the provider for pinned or dedicated CPUs.",
            **data,
        )
    if findings:
        return warn(
            name,
            "; ".join(it.message for it in findings),
            " ".join(it.consequence for it in findings),
            "deepsched topology --measure shows all figures; Topology.detect(measure=True) makes "
            "streams by them.",
            **data,
        )
    return ok(name, f"{found}; the caches are shared as the kernel says", **data)


def _range(found: Look) -> list[Any]:
    """Lowest and highest, ns."""
    trips = found.round_trips_ns
    if np.isnan(trips).all():
        return []
    return [round(float(np.nanmin(trips))), round(float(np.nanmax(trips)))]


def _in_words(found: Look) -> str:
    low, high = _range(found)
    between = f"{low} ns" if low == high else f"{low} to {high} ns"
    return f"{between} from core to core and back"
