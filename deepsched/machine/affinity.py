"""The CPUs that the calling thread may use, wherever the system tells it."""

from __future__ import annotations

import os
from pathlib import Path

from deepsched.machine.sysfs import CpuSet, parse_cpu_list, read_text


def own_cpus() -> CpuSet:
    """OS numbers of the CPUs in the calling thread's affinity mask.

    A sandbox may refuse sched_getaffinity; then what /proc says, else every CPU that there is.

    Example:
        >>> own_cpus() == os.sched_getaffinity(0)
        True
    """
    try:
        return frozenset(os.sched_getaffinity(0))
    except OSError:
        return _mask_in_proc() or frozenset(range(os.cpu_count() or 1))


def _mask_in_proc() -> CpuSet | None:
    """Cpus_allowed_list of proc_pid_status(5); None if it is not there."""
    for line in (read_text(Path("/proc/thread-self/status")) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            return parse_cpu_list(value.strip())
    return None
