"""How much of the CPUs that this process may use others take: what makes a measurement unsure."""

from __future__ import annotations

import os
import time
from pathlib import Path

from deepsched.machine.sysfs import read_text

DISTURBING = 0.1
"""A share from which figures say more of the others than of what was measured."""


class Neighbours:
    """Counts from when it is made. The machine counts in ticks of 10 ms: too coarse for less than a
    second or so."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cpus = os.sched_getaffinity(0)
        self._began = time.monotonic()
        self._own = time.process_time()
        self._busy = busy_seconds(root, self._cpus)

    def share(self) -> float | None:
        """What others took of the CPUs' time until now, a hypervisor that gave it to other machines
        included: between 0 and 1. None where the machine does not tell."""
        busy = busy_seconds(self._root, self._cpus)
        seconds = (time.monotonic() - self._began) * len(self._cpus)
        if busy is None or self._busy is None or seconds <= 0:
            return None
        others = busy - self._busy - (time.process_time() - self._own)
        return min(1.0, max(0.0, others / seconds))


def busy_seconds(root: Path, cpus: set[int]) -> float | None:
    """For how long these CPUs have been busy, or stolen, since the machine started, together; None
    where it does not tell (proc_stat(5))."""
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


def remark(share: float | None) -> str:
    """A sentence for those who read the figures; empty if others took little.

    >>> remark(0.02), remark(None)
    ('', '')
    >>> remark(0.381)[:48]
    'Other processes took 38% of these CPUs meanwhile'
    """
    if share is None or share < DISTURBING:
        return ""
    return (
        f"Other processes took {share:.0%} of these CPUs meanwhile, so the figures are unsure: run "
        "it again when the machine is quiet."
    )
