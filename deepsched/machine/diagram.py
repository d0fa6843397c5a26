"""The diagram of a machine: nested boxes of cores, and what each CPU is used for. Pure functions.

Rendered as text by the terminal, and as an SVG file.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from deepsched.machine.partition import Partition, Stream
from deepsched.machine.sysfs import format_cpu_list
from deepsched.machine.topology import Core, Topology

UNUSED = "unused"
FORBIDDEN = "forbidden"
OFFLINE = "offline"

MEANINGS = {
    UNUSED: "this process may use these CPUs, the streams do not: second hardware threads of "
    "cores, cores beyond num_cores or the CPU quota",
    FORBIDDEN: "online, but outside the affinity mask or the cgroup's cpuset",
    OFFLINE: "switched off; the kernel does not expose which cores they belong to",
}
"""The legend's text for the CPUs that are in no stream."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A core."""

    core: Core
    """With all its online CPUs, also those that this process may not use."""
    uses: tuple[int | str, ...]
    """Use of each CPU of the core: the index of its stream, UNUSED, FORBIDDEN or OFFLINE."""

    @property
    def use(self) -> int | str:
        """Use of the core as a whole: its stream, if any of its CPUs is in one."""
        streams = (use for use in self.uses if isinstance(use, int))
        return next(streams, UNUSED if UNUSED in self.uses else self.uses[0])


@dataclass(frozen=True, slots=True)
class Box:
    """A package, a NUMA node, an L3 cache, or several of these that have the same cores."""

    title: str
    boxes: tuple[Box, ...]
    """The boxes inside it; empty for a box that holds cores."""
    cells: tuple[Cell, ...]
    """Its cores, if it holds no boxes."""

    def leaves(self) -> Iterator[Box]:
        """The innermost boxes, which hold cores; itself if it is one."""
        if not self.boxes:
            yield self
        for box in self.boxes:
            yield from box.leaves()


@dataclass(frozen=True, slots=True)
class Diagram:
    """A machine and the streams made of it."""

    title: str
    boxes: tuple[Box, ...]
    streams: tuple[Stream, ...]
    warnings: tuple[tuple[str, str], ...]
    """The message and the explanation of each warning about the streams."""

    @property
    def has_kinds(self) -> bool:
        """Whether there are several kinds of core."""
        return len({cell.core.kind for cell in self.cells}) > 1

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cores."""
        leaves = itertools.chain.from_iterable(box.leaves() for box in self.boxes)
        return tuple(cell for leaf in leaves for cell in leaf.cells)

    @property
    def legend(self) -> tuple[tuple[int | str, str], ...]:
        """Each use that occurs in the diagram, with its text."""
        uses = {use for cell in self.cells for use in cell.uses}
        streams = [(it.index, f"stream {it.index}: {_describe(it)}") for it in self.streams]
        others = [(use, f"{use}: {text}") for use, text in MEANINGS.items() if use in uses]
        return (*streams, *others)


def build_diagram(
    topology: Topology,
    parts: Partition,
    online: Sequence[Core] | None = None,
    offline: Collection[int] = (),
) -> Diagram:
    """Arranges a machine's cores in nested boxes.

    Args:
        topology: the cores that the process may use.
        parts: the streams made of them.
        online: all online cores of the machine (`machine.topology.online_cores`); None if the
            process may use them all.
        offline: OS numbers of the offline CPUs.

    Example:
        >>> from deepsched import Topology, partition
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=2, threads_per_core=2)
        >>> diagram = build_diagram(machine, partition(machine))
        >>> [box.title for box in diagram.boxes]
        ['package 0 · NUMA node 0 · L3 0', 'package 1 · NUMA node 1 · L3 1']
        >>> diagram.boxes[1].cells[0].uses
        (1, 'unused')
    """
    use_of: dict[int, int | str] = dict.fromkeys(topology.cpus, UNUSED)
    use_of |= {cpu: stream.index for stream in parts.streams for cpu in stream.cpus}
    cores = topology.cores if online is None else online
    cells = [Cell(core, tuple(use_of.get(cpu, FORBIDDEN) for cpu in core.cpus)) for core in cores]
    return Diagram(
        _title(topology, parts),
        (*_nest(cells, _levels(cores), _l3_titles(topology)), *_offline_box(offline)),
        parts.streams,
        tuple((f"note ({it.kind}): {it}", it.kind.explanation) for it in parts.warnings),
    )


def _title(topology: Topology, parts: Partition) -> str:
    names = ("core", "CPU", "stream")
    counts = (len(topology.cores), len(topology.cpus), len(parts.streams))
    cores, cpus, streams = (
        f"{count} {'usable ' if name == 'core' else ''}{name}{'s' if count != 1 else ''}"
        for name, count in zip(names, counts, strict=True)
    )
    return f"{cores}, {cpus}, {streams}"


def _describe(stream: Stream) -> str:
    cpus = format_cpu_list(stream.cpus).replace(",", ", ")
    return f"{'CPU' if len(stream.cpus) == 1 else 'CPUs'} {cpus}"


# --- Boxes ------------------------------------------------------------------------------------

_Level = tuple[str, str]
"""The attribute of a core, and what to call it."""

_LEVELS: tuple[_Level, ...] = (("package", "package"), ("numa_node", "NUMA node"), ("l3", "L3"))


def _levels(cores: Sequence[Core]) -> tuple[_Level, ...]:
    """The levels that the machine exposes, the coarsest first.

    Sorted by the number of groups, since nesting differs: a package may have several NUMA nodes,
    and a NUMA node may span several packages.
    """
    counts = {level: len({getattr(core, level[0]) for core in cores}) for level in _LEVELS}
    known = [
        level for level in _LEVELS if any(getattr(core, level[0]) is not None for core in cores)
    ]
    return tuple(sorted(known, key=counts.__getitem__))  # stable


def _l3_titles(topology: Topology) -> dict[int, str]:
    """CPU -> the title of its L3, by its id in the topology, which is what `Stream.l3_groups` has.

    The ids in `online_cores` differ where the process may not use all caches.
    """
    return {
        cpu: f"L3 {core.l3}" for core in topology.cores if core.l3 is not None for cpu in core.cpus
    }


def _nest(
    cells: Sequence[Cell], levels: Sequence[_Level], l3_titles: dict[int, str]
) -> tuple[Box, ...]:
    if not levels:
        return (Box("", (), tuple(cells)),)
    (level, name), *finer = levels
    boxes = []
    for number, group in itertools.groupby(cells, lambda cell: getattr(cell.core, level)):
        members = list(group)
        title = "" if number is None else f"{name} {number}"
        if level == "l3" and number is not None:
            # A cache without usable CPUs has no id in the topology: its title has no number.
            cpus = (cpu for cell in members for cpu in cell.core.cpus)
            title = next((l3_titles[cpu] for cpu in cpus if cpu in l3_titles), name)
        boxes.append(_box(title, _nest(members, finer, l3_titles)))
    return tuple(boxes)


def _offline_box(cpus: Collection[int]) -> Iterator[Box]:
    if cpus:
        cores = (Core((cpu,), None, None, None, None, 0) for cpu in sorted(cpus))
        yield Box("", (), tuple(Cell(core, (OFFLINE,)) for core in cores))


def _box(title: str, inner: tuple[Box, ...]) -> Box:
    """A box around others. With a single one inside, the two have the same cores and are merged."""
    if len(inner) > 1:
        return Box(title, inner, ())
    (only,) = inner
    return Box(" · ".join(filter(None, (title, only.title))), only.boxes, only.cells)
