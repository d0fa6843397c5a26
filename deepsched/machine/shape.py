"""What decides how fast a model runs on some cores, whichever of the machine's cores they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepsched.machine.sysfs import read_cpuinfo
from deepsched.machine.topology import Core, distinct


def describe_shape(cores: Sequence[Core]) -> list[list[int | None]]:
    """For each core: its number of hardware threads, then its L2, L3, NUMA node and package, each
    numbered in order of appearance, and its kind. The numbers of the operating system, which
    change with every new cpuset, are not part of it.

    >>> from deepsched import Topology
    >>> cores = Topology.synthetic(packages=2, cores_per_l3=2).cores
    >>> describe_shape(cores[:2]) == describe_shape(cores[2:])
    True
    >>> describe_shape(cores[:2]) == describe_shape(cores[1:3])
    False
    """
    columns = [
        _renumber([core.l2 for core in cores]),
        _renumber([core.l3 for core in cores]),
        _renumber([core.numa_node for core in cores]),
        _renumber([core.package for core in cores]),
    ]
    rows = zip(cores, *columns, strict=True)
    return [[len(core.cpus), *places, core.kind] for core, *places in rows]


def cpu_models() -> list[list[str]]:
    """The kinds of CPU of this machine, with their instruction sets."""
    fields = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    cpus: Any = read_cpuinfo(Path("/")).values()
    return sorted(
        [list(kind) for kind in {tuple(cpu.get(it, "") for it in fields) for cpu in cpus}]
    )


def _renumber(ids: Sequence[int | None]) -> list[int | None]:
    order = {number: place for place, number in enumerate(distinct(ids))}
    return [None if number is None else order[number] for number in ids]
