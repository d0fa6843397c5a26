"""What a load cost the process: CPU time, memory, and time lost to the cgroup's CPU quota."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from deepsched.machine.cgroup import throttled_seconds
from deepsched.machine.contention import Neighbours


@dataclass(frozen=True)
class Usage:
    """Of the whole process, the load's own threads included, over a part of a load."""

    seconds: float
    cpu_seconds: float
    """Of all threads, user and system."""
    throttled_seconds: float | None
    """For how long the cgroup's CPU quota kept its threads from running, summed over CPUs; None
    where the kernel does not tell."""
    peak_memory_bytes: int
    """The most that was resident at once (VmHWM), since `reset_peak_memory`."""
    others_share: float | None
    """What other processes took of the CPUs that this one may use: between 0 and 1; None where the
    kernel does not tell."""


@dataclass(frozen=True)
class Reading:
    """The meters at one moment."""

    at_ns: int
    cpu_seconds: float
    throttled_seconds: tuple[float, ...]
    neighbours: Neighbours

    @classmethod
    def take(cls, at_ns: int) -> Reading:
        """`at_ns`: the moment, of the clock that the load goes by."""
        return cls(at_ns, time.process_time(), throttled_seconds(Path("/")), Neighbours())

    def until(self, later: Reading) -> Usage:
        """What was used between the two, of which `later` is now."""
        # A group's time and its parent's may be the same: the most, not the sum.
        pairs = zip(self.throttled_seconds, later.throttled_seconds, strict=False)
        return Usage(
            seconds=(later.at_ns - self.at_ns) / 1e9,
            cpu_seconds=later.cpu_seconds - self.cpu_seconds,
            throttled_seconds=max((after - before for before, after in pairs), default=None),
            peak_memory_bytes=peak_memory_bytes(),
            others_share=self.neighbours.share(),
        )


def reset_peak_memory() -> None:
    """Makes the peak what is resident now. Where the kernel refuses, it stays the process's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak alone


def peak_memory_bytes() -> int:
    """The most that was resident at once."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024
