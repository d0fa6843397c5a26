"""CPU contention from other processes, as the kernel reports it."""

from __future__ import annotations

import re

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host

_MUCH_PRESSURE = 0.1
"""Share of the time in which some thread waited for a CPU."""

_MUCH_LOAD = 0.8
"""Threads per core. Pressure alone misses others that keep all cores busy and wait for none: they
will wait, and requests with them, as soon as there are requests."""


def contention(host: Host) -> Check:
    """Whether others keep the cores busy just now."""
    name = "contention"
    pressure, load = _pressure(host), _load(host)
    data = {"pressure": pressure, "load_per_core": load}
    facts = []
    if pressure is not None:
        facts.append(f"threads waited for a CPU in {pressure:.0%} of the last 10 s")
    if load is not None:
        facts.append(f"load average of the last minute: {load:.2f} per core")
    if not facts:
        return unknown(name, "the kernel reports neither pressure nor load", **data)
    found = "; ".join(facts)
    if (pressure or 0.0) < _MUCH_PRESSURE and (load or 0.0) < _MUCH_LOAD:
        return ok(name, found, **data)
    return warn(
        name,
        found,
        "All threads of a stream wait for the one that lost its CPU, and figures measured now are "
        "unreliable. This counts the whole machine, this process included.",
        "Unless it is this process's own load: top shows which processes it is. Stop them, or give "
        "them other cores than this process (docker run --cpuset-cpus, taskset).",
        **data,
    )


def _pressure(host: Host) -> float | None:
    """Share of the last 10 s in which some thread waited for a CPU (Documentation/accounting/psi);
    None before Linux 4.20, or where it is switched off."""
    text = host.read_text("proc/pressure/cpu") or ""
    match = re.match(r"some avg10=([0-9]{1,3}\.[0-9]{2}) ", text)
    return float(match[1]) / 100 if match else None


def _load(host: Host) -> float | None:
    """Threads that run or want to (or wait for a disk), per online core, over the last minute."""
    text = host.read_text("proc/loadavg") or ""
    match = re.match(r"([0-9]{1,6}\.[0-9]{2}) ", text)
    return float(match[1]) / len(host.online) if match else None
