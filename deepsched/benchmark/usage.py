"""Resource usage of the process under a load: CPU time, memory, and CPU quota throttling."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from deepsched.machine.cgroup import throttled_seconds
from deepsched.machine.contention import ContentionMonitor
from deepsched.machine.sysfs import read_text


@dataclass(frozen=True)
class Usage:
    """Usage of the whole process, the callers' threads included, between two snapshots."""

    seconds: float
    cpu_seconds: float
    """User and system time of all threads."""
    throttled_seconds: float | None
    """Time that the cgroup's CPU quota kept its threads from running, summed over CPUs; None if
    unknown."""
    peak_memory_bytes: int
    """Peak resident memory (VmHWM) since `reset_peak_memory`."""
    others_share: float | None
    """CPU contention: the share of the worst CPU's time that others used, of the CPUs in use,
    between 0 and 1; None if unknown. See `ContentionMonitor`."""
    steal_share: float | None
    """The share of the worst CPU's time that the hypervisor stole, part of `others_share`; None if
    this machine does not count it."""


@dataclass(frozen=True)
class UsageSnapshot:
    """The process's counters at one moment."""

    at_ns: int
    cpu_seconds: float
    throttled_seconds: tuple[float, ...]
    contention: ContentionMonitor

    @classmethod
    def take(cls, at_ns: int, cpus: Collection[int] | None) -> UsageSnapshot:
        """Reads them now.

        Args:
            at_ns: now, by the clock of the load.
            cpus: the CPUs in use; None for all that this process may use.
        """
        contention = ContentionMonitor(cpus)
        return cls(at_ns, time.process_time(), throttled_seconds(Path("/")), contention)

    def until(self, later: UsageSnapshot) -> Usage:
        """Usage between the two. Call it right after `later` was taken: contention is up to now."""
        # A group and its parent may count the same throttling: take the maximum, not the sum.
        pairs = zip(self.throttled_seconds, later.throttled_seconds, strict=False)
        return Usage(
            seconds=(later.at_ns - self.at_ns) / 1e9,
            cpu_seconds=later.cpu_seconds - self.cpu_seconds,
            throttled_seconds=max((after - before for before, after in pairs), default=None),
            peak_memory_bytes=peak_memory_bytes(),
            others_share=self.contention.others_share(),
            steal_share=self.contention.steal_share(),
        )


def reset_peak_memory() -> None:
    """Resets the peak to what is resident now. If the kernel refuses, it stays as it is."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM alone: proc(5)


def peak_memory_bytes() -> int:
    """Peak resident memory of the process."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", read_text(Path("/proc/self/status")) or "", re.M)
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024
