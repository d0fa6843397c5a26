"""Diagnosis of a machine: what slows inference down, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from deepsched.doctor import (
    contention,
    instructions,
    kernel,
    latency,
    leases,
    limits,
    machine,
    pools,
    versions,
)
from deepsched.doctor.diagnosis import Check, Diagnosis, Status
from deepsched.doctor.host import Host

__all__ = ["Check", "Diagnosis", "Status", "check_hardware"]

_CHECKS = (
    instructions.fp32,
    instructions.int8,
    instructions.fp16,
    instructions.bf16,
    limits.affinity,
    limits.cpuset,
    limits.streams,
    leases.leases,
    limits.cpu_quota,
    limits.throttling,
    machine.smt,
    machine.core_kinds,
    latency.core_latency,
    machine.numa,
    machine.numa_balancing,
    machine.memory_nodes,
    limits.memory,
    limits.shared_memory,
    kernel.huge_pages,
    kernel.governor,
    kernel.boost,
    kernel.steal,
    contention.contention,
    pools.thread_pools,
    versions.packages,
    versions.onnxruntime,
)


def check_hardware(
    root: str | os.PathLike[str] = "/",
    affinity: Iterable[int] | None = None,
    *,
    watch: bool = False,
) -> Diagnosis:
    """Checks the machine, and this process on it, for what slows inference down.

    Changes nothing. Keeps the cores busy for some milliseconds (a second at most, on machines with
    hundreds), to measure the latency between them.

    Args:
        root: the folder that holds sys/ and proc/; "/" is this machine. For a captured machine
            the checks of the process (packages, thread pools, /dev/shm) are unknown.
        affinity: OS numbers of the CPUs that the process may use; None for the calling thread's
            affinity mask, and for all CPUs of a captured machine.
        watch: look at the latency between cores twice, two seconds apart, since it changes where a
            host moves virtual CPUs.

    Raises:
        TopologyError: `root` holds no machine, or none of its CPUs may be used.

    Example:
        >>> diagnosis = check_hardware()
        >>> str(diagnosis["cpuset"].status)
        'ok'
    """
    host = Host.read(root, affinity, watch)
    return Diagnosis(tuple(check(host) for check in _CHECKS))
