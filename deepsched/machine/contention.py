"""CPU contention from other processes, which makes measurements unreliable."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeGuard

from deepsched.machine.sysfs import read_text

CONTENDED_SHARE = 0.1
"""From this share on, contention distorts figures by more than the differences they are to show."""


class ContentionMonitor:
    """Measures contention on the CPUs in this process's affinity mask, from construction on.

    The kernel counts in ticks of 10 ms (USER_HZ), too coarse for intervals below about a second.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cpus = os.sched_getaffinity(0)
        self._began = time.monotonic()
        self._own = time.process_time()
        self._busy = read_busy_seconds(root, self._cpus)

    def others_share(self) -> float | None:
        """The share of these CPUs' time that others used so far, between 0 and 1; None if unknown.

        Steal time counts as theirs: the hypervisor gave it to other virtual machines.
        """
        busy = read_busy_seconds(self._root, self._cpus)
        seconds = (time.monotonic() - self._began) * len(self._cpus)
        if busy is None or self._busy is None or seconds <= 0:
            return None
        others = busy - self._busy - (time.process_time() - self._own)
        # Ticks and the process clock are not sampled at one moment: the difference may be negative.
        return min(1.0, max(0.0, others / seconds))


def read_busy_seconds(root: Path, cpus: set[int]) -> float | None:
    """Busy and stolen time of these CPUs since boot, summed, in seconds, from proc_stat(5).

    None where the kernel does not count all of them.
    """
    ticks = 0
    seen = set()
    for line in (read_text(root / "proc/stat") or "").splitlines():
        name, *numbers = line.split()
        cpu = name.removeprefix("cpu")
        if name.startswith("cpu") and cpu.isdecimal() and int(cpu) in cpus:
            if len(numbers) < 8 or not all(number.isdecimal() for number in numbers):
                return None
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
            ticks += user + nice + system + irq + softirq + steal
            seen.add(int(cpu))
    return ticks / os.sysconf("SC_CLK_TCK") if seen == cpus else None


def is_contended(others_share: float | None) -> TypeGuard[float]:
    """Whether others used so much CPU time that figures are unreliable; False if unknown.

    >>> is_contended(0.02), is_contended(0.38), is_contended(None)
    (False, True, False)
    """
    return others_share is not None and others_share >= CONTENDED_SHARE


def contention_note(others_share: float) -> str:
    """A sentence for the reader of figures that were measured under contention.

    >>> contention_note(0.381)[:57]
    'Other processes used 38% of these CPUs during measurement'
    """
    return (
        f"Other processes used {others_share:.0%} of these CPUs during measurement, so the figures "
        "are unreliable. Repeat it on an idle machine."
    )
