"""The machine that is looked at, and what of it this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deepsched.machine import cgroup
from deepsched.machine.partition import partition
from deepsched.machine.sysfs import CpuInfo, CpuSet, parse_cpu_list, read_cpuinfo, read_text
from deepsched.machine.topology import Core, Topology, online_cores


@dataclass(frozen=True)
class Host:
    """A machine, as far as the checks share what they read of it."""

    root: Path
    topology: Topology
    """What this process may use."""
    online: tuple[Core, ...]
    """The cores of all CPUs that are online, whoever may use them."""
    affinity: CpuSet | None
    """The affinity mask; None where it is not known."""
    cpuset: CpuSet | None
    """The CPUs that the cgroup allows; None for every one."""

    @classmethod
    def read(cls, root: str | os.PathLike[str], affinity: Iterable[int] | None) -> Host:
        """The machine whose /sys and /proc lie below `root`; "/" is this one.

        Raises:
            TopologyError: it cannot be read.
        """
        folder = Path(root)
        mask = None if affinity is None else frozenset(affinity)
        if folder == Path("/") and mask is None:
            topology, mask = Topology.detect(), frozenset(os.sched_getaffinity(0))
        else:
            topology = Topology.from_sysfs(folder, mask)
        return cls(folder, topology, online_cores(folder), mask, cgroup.allowed_cpus(folder))

    @property
    def is_local(self) -> bool:
        """Whether it is the machine that this process runs on."""
        return self.root == Path("/")

    @property
    def online_cpus(self) -> CpuSet:
        """The OS numbers of all CPUs that are online."""
        return frozenset(cpu for core in self.online for cpu in core.cpus)

    @cached_property
    def used_cores(self) -> tuple[Core, ...]:
        """The cores that a context takes unless it is told otherwise."""
        return tuple(core for stream in partition(self.topology).streams for core in stream.cores)

    def whole_cores(self, cpus: Iterable[int]) -> CpuSet:
        """These CPUs and the others of their cores, but isolated ones: programs are kept off those,
        so they do not share the cores."""
        wanted = frozenset(cpus)
        cores = (set(core.cpus) for core in self.online if not wanted.isdisjoint(core.cpus))
        return wanted | frozenset().union(*cores) - self.isolated

    @property
    def isolated(self) -> CpuSet:
        """The CPUs that the kernel runs programs on only where they ask for it."""
        return self.read_list("sys/devices/system/cpu/isolated") or frozenset()

    @property
    def memory_nodes(self) -> frozenset[int] | None:
        """The nodes that memory may come from; None where the machine does not tell."""
        for line in (self.read_text("proc/self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == "Mems_allowed_list":
                return parse_list(value.strip()) or None
        return None

    @cached_property
    def cpuinfo(self) -> CpuInfo:
        """proc/cpuinfo; it is slow to read on a large machine."""
        return read_cpuinfo(self.root)

    @property
    def is_virtual(self) -> bool:
        """Whether the CPUs say that they are a hypervisor's; only x86 has a flag for it."""
        return any(
            "hypervisor" in fields.get("flags", "").split() for fields in self.cpuinfo.values()
        )

    def read_text(self, path: str) -> str | None:
        """The text of a file below the root; None where it cannot be read."""
        return read_text(self.root / path)

    def read_list(self, path: str) -> frozenset[int] | None:
        """The numbers in a file in the kernel's list format; None where it holds no such list."""
        return parse_list(self.read_text(path))


def parse_list(text: str | None) -> frozenset[int] | None:
    """The numbers of a list in the kernel's format; None where it is none.

    >>> parse_list("0-1") == {0, 1}, parse_list("?")
    (True, None)
    """
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        return None


NOT_LOCAL = "the files of a machine do not tell; run this on the machine itself"
"""What is found of a captured machine where only a process on the machine could tell."""
