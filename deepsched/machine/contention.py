"""CPU contention from other processes, which makes measurements unreliable."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from deepsched.machine.affinity import own_cpus
from deepsched.machine.sysfs import read_cpuinfo, read_text

CONTENDED_SHARE = 0.1
"""From this share on, contention distorts figures by more than the differences they are to show."""

# A CPU's busy time is the sum of several counters, each rounded down to a tick (10 ms).
_ROUNDING_TICKS = 2

# Sampling takes at most this share of the caller's time.
_SAMPLING_SHARE = 0.01


class ContentionMonitor:
    """Measures contention on the CPUs in use, from construction on.

    One CPU that is taken halves a request that runs on 32, so the worst CPU counts, not the mean.

    The kernel tells how long each CPU was busy, but not for whom: this process's share of each CPU
    is inferred from its threads. Time of a thread that is on the same CPU in two consecutive
    samples belongs to that CPU. For all other time, that of threads that moved or ended in between,
    only the sum is known; it is assumed to lie where it explains most. Thus the result is a lower
    bound, close to the truth for pinned threads, and never alarms because a thread moved. Call
    `sample` now and then, in particular before threads end.
    """

    def __init__(self, cpus: Collection[int] | None = None, root: Path = Path("/")) -> None:
        """`cpus`: the CPUs in use; None for all that this process may use."""
        self._root = root
        self._cpus = own_cpus() if cpus is None else frozenset(cpus)
        self._located: dict[int, float] = defaultdict(float)
        self._next_sample = 0.0
        self._began = time.monotonic()
        self._own = time.process_time()
        self._threads = read_threads(root)
        self._first = read_cpu_times(root, self._cpus)

    @property
    def seconds(self) -> float:
        """Since construction."""
        return time.monotonic() - self._began

    def sample(self) -> None:
        """Notes where this process's threads ran since the last sample.

        Cheap enough to be called often: it returns at once if the last sample is recent.
        """
        began = time.monotonic()
        if began >= self._next_sample:
            self._locate()
            ended = time.monotonic()
            self._next_sample = ended + (ended - began) / _SAMPLING_SHARE

    def others_share(self) -> float | None:
        """The share of the worst CPU's time that others used so far, from 0 to 1; None if unknown.

        At least this share was taken. Steal time counts as theirs: the hypervisor gave it to other
        virtual machines.
        """
        own = time.process_time() - self._own
        self._locate()
        last, seconds = self._read()
        if last is None or self._first is None or seconds <= 0:
            return None
        unexplained = {
            cpu: last[cpu].busy - self._first[cpu].busy - self._located[cpu] for cpu in self._cpus
        }
        rounding = _ROUNDING_TICKS / os.sysconf("SC_CLK_TCK")
        others = least_worst(unexplained, own - sum(self._located.values())) - rounding
        return min(1.0, max(0.0, others / seconds))

    def steal_share(self) -> float | None:
        """The share of the worst CPU's time that the hypervisor stole so far, from 0 to 1.

        None if unknown: in a virtual machine that has counted none since it was booted, the
        hypervisor most likely does not tell.
        """
        last, seconds = self._read()
        if last is None or self._first is None or seconds <= 0:
            return None
        if not any(it.steal for it in last.values()) and _is_virtual(self._root):
            return None
        stolen = max(last[cpu].steal - self._first[cpu].steal for cpu in self._cpus)
        return min(1.0, max(0.0, stolen / seconds))

    def _read(self) -> tuple[Mapping[int, CpuTimes] | None, float]:
        return read_cpu_times(self._root, self._cpus), self.seconds

    def _locate(self) -> None:
        threads = read_threads(self._root)
        for thread, (seconds, cpu) in threads.items():
            before, cpu_before = self._threads.get(thread, (seconds, cpu))
            if cpu == cpu_before:
                self._located[cpu] += max(0.0, seconds - before)
        self._threads = threads


def least_worst(unexplained: Mapping[int, float], unlocated: float) -> float:
    """The least possible maximum, if `unlocated` is subtracted from the values in any way.

    >>> least_worst({0: 5.0, 1: 1.0, 2: 1.0}, 3.0), least_worst({0: 5.0, 1: 4.0, 2: 1.0}, 3.0)
    (2.0, 3.0)
    """
    highest = sorted(unexplained.values(), reverse=True)
    total = 0.0
    for count, value in enumerate(highest, 1):
        total += value
        # Levels the highest `count` values; the others stay as they are.
        level = (total - max(0.0, unlocated)) / count
        if count == len(highest) or level >= highest[count]:
            return level
    return 0.0


@dataclass(frozen=True)
class CpuTimes:
    """Time of a CPU since boot, in seconds."""

    busy: float
    """Stolen time included."""
    steal: float


def read_cpu_times(root: Path, cpus: Collection[int]) -> dict[int, CpuTimes] | None:
    """Busy and stolen time of these CPUs, from proc_stat(5).

    None where the kernel does not count all of them.
    """
    times: dict[int, CpuTimes] = {}
    tick = 1 / os.sysconf("SC_CLK_TCK")
    for line in (read_text(root / "proc/stat") or "").splitlines():
        name, *numbers = line.split() or [""]
        cpu = name.removeprefix("cpu")
        if name.startswith("cpu") and cpu.isdecimal() and int(cpu) in cpus:
            if len(numbers) < 8 or not all(number.isdecimal() for number in numbers):
                return None
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
            busy = user + nice + system + irq + softirq + steal
            times[int(cpu)] = CpuTimes(busy * tick, steal * tick)
    return times if times.keys() == set(cpus) else None


def read_threads(root: Path) -> dict[int, tuple[float, int]]:
    """By thread of this process: its CPU time in seconds, and the CPU it ran on last; from
    proc_pid_stat(5). Threads that end meanwhile are left out."""
    threads: dict[int, tuple[float, int]] = {}
    folder = root / "proc/self/task"
    tick = 1 / os.sysconf("SC_CLK_TCK")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            # The thread's name, in parentheses, may contain anything.
            fields = (read_text(folder / name / "stat") or "").rpartition(")")[2].split()
            if name.isdecimal() and len(fields) > 36:
                user, system, cpu = (int(fields[index]) for index in (11, 12, 36))
                threads[int(name)] = ((user + system) * tick, cpu)
    return threads


@functools.cache
def _is_virtual(root: Path) -> bool:
    """Whether this is known to be a virtual machine."""
    marks = ("sys/hypervisor/type", "proc/device-tree/hypervisor")
    return any((root / mark).exists() for mark in marks) or any(
        "hypervisor" in fields.get("flags", "").split() for fields in read_cpuinfo(root).values()
    )


def is_contended(others_share: float | None) -> TypeGuard[float]:
    """Whether others used so much CPU time that figures are unreliable; False if unknown.

    >>> is_contended(0.02), is_contended(0.38), is_contended(None)
    (False, True, False)
    """
    return others_share is not None and others_share >= CONTENDED_SHARE


def contention_notes(others_share: float | None, steal_share: float | None) -> list[str]:
    """Sentences for the reader of figures that were measured meanwhile: what makes them unreliable,
    and what is not known.

    >>> contention_notes(0.381, 0.2)[0][:59]
    'Other processes used 38% of one of the CPUs during measurem'
    >>> contention_notes(0.02, 0.0)
    []
    """
    notes = []
    if is_contended(others_share):
        notes.append(
            f"Other processes used {others_share:.0%} of one of the CPUs during measurement, so "
            "the figures are unreliable. Repeat it on an idle machine."
        )
    if others_share is None:
        notes.append("CPU contention is unknown: the kernel does not count busy time by CPU.")
    elif steal_share is None:
        notes.append(
            "This virtual machine has never counted steal time: CPU time that went to other "
            "virtual machines on its host would not show."
        )
    return notes
