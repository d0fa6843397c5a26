"""The machine under diagnosis, and the part of it that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepsched.lazy import cached_property
from deepsched.machine import cgroup
from deepsched.machine.affinity import own_cpus
from deepsched.machine.partition import partition
from deepsched.machine.sysfs import CpuInfo, CpuSet, parse_cpu_list, read_cpuinfo, read_text
from deepsched.machine.topology import Core, Topology, online_cores


@dataclass(frozen=True)
class Host:
    """What the checks share of a machine."""

    root: Path
    topology: Topology
    """The part that this process may use."""
    online: tuple[Core, ...]
    """The cores of all CPUs that are online, whoever may use them."""
    affinity: CpuSet | None
    """The affinity mask; None if unknown."""
    cpuset: CpuSet | None
    """The CPUs that the cgroup allows; None for all."""
    watch: bool = False
    """Whether checks may take seconds, to see what changes."""

    @classmethod
    def read(
        cls, root: str | os.PathLike[str], affinity: Iterable[int] | None, watch: bool = False
    ) -> Host:
        """Reads the machine whose sys/ and proc/ are below `root`; "/" is this one.

        Raises:
            TopologyError: `root` holds no machine, or none of its CPUs may be used.
        """
        folder = Path(root)
        mask = None if affinity is None else frozenset(affinity)
        if folder == Path("/") and mask is None:
            topology, mask = Topology.detect(), own_cpus()
        else:
            topology = Topology.from_sysfs(folder, mask)
        return cls(folder, topology, online_cores(folder), mask, cgroup.allowed_cpus(folder), watch)

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
        """The cores that a context uses by default."""
        return tuple(core for stream in partition(self.topology).streams for core in stream.cores)

    def whole_cores(self, cpus: Iterable[int]) -> CpuSet:
        """These CPUs and the other hardware threads of their cores, without isolated ones: the
        scheduler places nothing there, so they do not compete for the core."""
        wanted = frozenset(cpus)
        cores = (set(core.cpus) for core in self.online if not wanted.isdisjoint(core.cpus))
        return wanted | frozenset().union(*cores) - self.isolated

    @property
    def isolated(self) -> CpuSet:
        """The CPUs of isolcpus=, where only threads that ask for it run."""
        return self.read_list("sys/devices/system/cpu/isolated") or frozenset()

    @property
    def memory_nodes(self) -> frozenset[int] | None:
        """The nodes that memory may be allocated on; None if not reported."""
        for line in (self.read_text("proc/self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == "Mems_allowed_list":
                return parse_list(value.strip()) or None
        return None

    @cached_property
    def cpuinfo(self) -> CpuInfo:
        """proc/cpuinfo, which is slow to read on a large machine."""
        return read_cpuinfo(self.root)

    @property
    def is_virtual(self) -> bool:
        """Whether the CPUs report a hypervisor; only x86 has a flag for it."""
        return any(
            "hypervisor" in fields.get("flags", "").split() for fields in self.cpuinfo.values()
        )

    def read_text(self, path: str) -> str | None:
        """The text of a file below the root; None if unreadable."""
        return read_text(self.root / path)

    def read_list(self, path: str) -> frozenset[int] | None:
        """The numbers in a file in the kernel's list format; None if it holds no such list."""
        return parse_list(self.read_text(path))


def parse_list(text: str | None) -> frozenset[int] | None:
    """The numbers of a list in the kernel's format; None if it is malformed.

    >>> parse_list("0-1") == {0, 1}, parse_list("?")
    (True, None)
    """
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        return None


NOT_LOCAL = "not in the captured files; run this on the machine itself"
"""The finding for a captured machine, of what only a process on the machine could see."""
