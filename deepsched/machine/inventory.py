"""The inventory of a machine: all its CPUs, also those that this process may not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from deepsched.machine.partition import Partition
from deepsched.machine.sysfs import offline_cpus
from deepsched.machine.topology import Core, Topology, online_cores


class Machine(NamedTuple):
    """A machine, and the part of it that this process may use."""

    topology: Topology
    """The cores that this process may use."""
    online: tuple[Core, ...]
    """The cores of all online CPUs."""
    offline: frozenset[int]
    """OS numbers of the offline CPUs; the kernel does not expose which cores they belong to."""

    @property
    def forbidden_cpus(self) -> list[int]:
        """OS numbers of the CPUs that are offline or not allowed for this process, ascending."""
        online = {cpu for core in self.online for cpu in core.cpus}
        return sorted((online | self.offline) - set(self.topology.cpus))

    def to_dict(self, parts: Partition) -> dict[str, Any]:
        """The machine, and the streams made of it with their warnings; ready for JSON."""
        return {
            "topology": self.topology.to_dict(),
            "streams": [
                {
                    "index": stream.index,
                    "cpus": stream.cpus,
                    "l3_groups": stream.l3_groups,
                    "numa_nodes": stream.numa_nodes,
                    "packages": stream.packages,
                }
                for stream in parts.streams
            ],
            "warnings": [
                {**warning.to_dict(), "explanation": warning.kind.explanation}
                for warning in parts.warnings
            ],
            "forbidden_cpus": self.forbidden_cpus,
        }


def read_machine(topology: Topology, root: str = "/") -> Machine:
    """The machine that a topology was read from.

    Args:
        topology: what the process may use.
        root: the folder with sys/ and proc/ that it was read from.

    Raises:
        TopologyError: `root` holds no machine.

    Example:
        >>> machine = read_machine(Topology.detect())
        >>> set(machine.forbidden_cpus).isdisjoint(machine.topology.cpus)
        True
    """
    return Machine(topology, online_cores(root), offline_cpus(Path(root)))
