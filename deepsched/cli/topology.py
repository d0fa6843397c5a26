"""`deepsched topology`: the machine, the streams it would be cut into, and why."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.columns import Columns
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deepsched.cli.console import Console
from deepsched.cli.files import to_json, writing
from deepsched.cli.options import add_num_cores, add_num_streams, add_option
from deepsched.cli.palette import fill_of, ink_of
from deepsched.cli.topology_svg import draw_svg
from deepsched.errors import OptionError
from deepsched.machine.diagram import OFFLINE, UNUSED, Box, Cell, Diagram, build_diagram
from deepsched.machine.inventory import Machine, read_machine
from deepsched.machine.leases import holders
from deepsched.machine.partition import Partition, partition
from deepsched.machine.topology import Topology

_MOST_CPUS = 8192  # NR_CPUS of an x86 kernel with MAXSMP

_EPILOG = """\
the picture:
  A line per L3 cache (or NUMA node or package, if the machine does not report caches), below the
  node and package that hold it. A coloured field is a core with the OS numbers of its hardware
  threads, as in 0,64. s0: the cores that follow belong to stream 0; its threads run on the coloured
  numbers. unused: available to this process, but in no stream. forbidden: outside the affinity mask
  or the cgroup's cpuset. offline: switched off. k0, k1: kinds of core on hybrid CPUs, the least
  capable first.

fields of the JSON:
  topology        the cores that this process may use; cpu_quota in cores, null for none
  streams         index, cpus (OS numbers), and the ids of the caches, nodes and packages they touch
  warnings        drawbacks of these streams: kind, streams (indexes), message, explanation
  holders         other processes of deepsched with some of these CPUs: pid, command, cpus, is_lease
                  (whether they have them for themselves); of this machine only
  forbidden_cpus  OS numbers of the CPUs that are offline or not available to this process
  measured        with --measure: cpus (one of each core), round_trips_ns (a row and a column for
                  each of them; null: no figure), memory_latency_ns (of one load), l3_groups (CPUs
                  that share a last-level cache), same_core (CPUs that are threads of one core),
                  core_bandwidth and group_bandwidths (bytes read per second by one core, and by all
                  cores of each group), others_share (what others used of the worst CPU meanwhile),
                  is_reliable, refused (why no thread could be pinned), findings (kind,
                  is_disagreement, message, consequence)

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a machine that cannot be read
  141  output pipe closed early, as with `| head`

examples:
  deepsched topology --num-streams 3
  deepsched topology --measure --svg machine.svg
  deepsched topology --synthetic 2:1:4:8:2 --svg machine.svg
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Shows the machine, the cores that this process may use, the streams that multi_stream "
        "would make of them, and the drawbacks of these streams."
    )
    parser.epilog = _EPILOG
    add_num_cores(parser)
    add_num_streams(parser, "streams to make (default: one per L3 cache)")
    add_option(
        parser,
        "--threads-per-core",
        type=int,
        default=1,
        metavar="N",
        help="hardware threads to use of each core (default 1)",
    )
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument(
        "--sysfs", metavar="ROOT", help="folder with another machine's sys/ and proc/"
    )
    machine.add_argument(
        "--synthetic",
        metavar="P:N:L:C:T",
        help="a made-up machine: packages, NUMA nodes per package, L3 caches per node, cores per "
        "L3, hardware threads per core; 2:1:4:8:2 for example",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure latency between the cores and memory bandwidth, and compare with what the "
        "kernel says; takes seconds, and disturbs what runs on the cores",
    )
    parser.add_argument("--svg", metavar="FILE.svg", help="write the picture there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the machine and its streams."""
    machine = _machine(args)
    topology = machine.topology
    if args.measure:  # with numpy, which takes longer to import than the rest to run
        from deepsched.cli.heat_map import draw_piece
        from deepsched.cli.measured_text import print_measured
        from deepsched.machine.measured import measure_machine

        measured = measure_machine(topology)
    parts = partition(topology, args.num_cores, args.num_streams, args.threads_per_core)
    diagram = build_diagram(topology, parts, machine.online, machine.offline)
    if args.svg:
        with writing(args.svg, "--svg") as file:
            file.write(draw_svg(diagram, [draw_piece(measured.look)] if args.measure else []))
    if args.json:
        fields = machine.to_dict(parts)
        if topology.is_local:
            fields["holders"] = [asdict(holder) for holder in holders(topology.cpus)]
        print(to_json({**fields, "measured": measured.to_dict()} if args.measure else fields))
        return
    console = Console()
    _print_diagram(console, diagram)
    for line in _reasons(args, topology, parts):
        console.print(line, soft_wrap=True)
    if topology.is_local:
        for holder in holders(topology.cpus):
            console.print(f"{holder}", soft_wrap=True)
    for title, explanation in diagram.warnings:
        console.print(f"\n{title}", soft_wrap=True)
        console.print(Padding(explanation, (0, 0, 0, 2), expand=False))
    if args.measure:
        print_measured(console, measured)


def _machine(args: argparse.Namespace) -> Machine:
    if args.sysfs is not None:
        return read_machine(Topology.from_sysfs(args.sysfs), args.sysfs)
    if args.synthetic is not None:
        try:
            counts = [int(part) for part in args.synthetic.split(":")]
        except ValueError:
            counts = []
        if not 1 <= len(counts) <= 5:
            raise OptionError(f"--synthetic must look like 2:1:4:8:2, got {args.synthetic!r}")
        num_cpus = math.prod(counts)
        if num_cpus > _MOST_CPUS:
            raise OptionError(
                f"--synthetic takes up to {_MOST_CPUS} hardware threads, the most that Linux "
                f"supports; {args.synthetic!r} has {num_cpus}"
            )
        topology = Topology.synthetic(*counts)
        return Machine(topology, topology.cores, frozenset())
    return read_machine(Topology.detect())


# --- The diagram ------------------------------------------------------------------------------


def _print_diagram(console: Console, diagram: Diagram) -> None:
    console.print(diagram.title, style="bold")
    for line in _lines(diagram, console.width):
        console.print(line, soft_wrap=True)
    console.print()
    legend = [(_swatch(use), text) for use, text in diagram.legend]
    num_streams = len(diagram.streams)
    if num_streams > 8:
        streams = (Text.assemble(swatch, " ", text) for swatch, text in legend[:num_streams])
        console.print(Columns(streams, padding=(0, 2)))
        legend = legend[num_streams:]
    table = Table.grid(padding=(0, 1))
    for swatch, text in legend:
        table.add_row(swatch, text)
    console.print(table)


def _swatch(use: int | str) -> Text:
    return Text(f" s{use} " if isinstance(use, int) else "    ", _style(use))


def _style(use: int | str) -> str:
    return "dim" if use == UNUSED else f"{ink_of(use)} on {fill_of(use)}"


def _lines(diagram: Diagram, width: int) -> Iterator[Text]:
    field_width = max(len(_field(cell, 0)) for cell in diagram.cells)
    has_kinds = diagram.has_kinds  # looks at every core

    def draw(boxes: Sequence[Box], indent: str) -> Iterator[Text]:
        title_width = max(0 if box.boxes else len(box.title) for box in boxes)
        for box in boxes:
            if box.boxes:
                yield Text(indent + box.title)
                yield from draw(box.boxes, indent + "  ")
            else:
                start = f"{indent}{box.title.ljust(title_width)}  " if title_width else indent
                fields = _fields(box.cells, has_kinds, field_width)
                yield from _wrapped(start, fields, width)

    yield from draw(diagram.boxes, "")


def _wrapped(start: str, fields: Iterator[Text], width: int) -> Iterator[Text]:
    """`start` and the fields, wrapped to `width`."""
    line = Text(start).append_text(next(fields))
    for field in fields:
        if len(line) + len(field) > width:
            yield line
            line = Text(" " * len(start))
        line.append_text(field)
    yield line


def _fields(cells: Sequence[Cell], has_kinds: bool, width: int) -> Iterator[Text]:
    """A field per core; the first of several alike says what they are."""
    last = ""
    for cell in cells:
        tag = f"s{cell.use}" if isinstance(cell.use, int) else cell.use
        if has_kinds and cell.use != OFFLINE:
            tag += f" k{cell.core.kind}"
        label = "" if tag == last else f"{tag} "
        yield Text.assemble((label, "bold"), _field(cell, width), " ")
        last = tag


def _field(cell: Cell, width: int) -> Text:
    """The numbers of a core's hardware threads, coloured by use."""
    field = Text()
    for index, (cpu, use) in enumerate(zip(cell.core.cpus, cell.uses, strict=True)):
        field.append(f"{',' if index else ' '}{cpu}", _style(use))
    field.append(" ", _style(cell.uses[-1]))
    return Text(" " * (width - len(field))).append_text(field)


# --- Why --------------------------------------------------------------------------------------


def _reasons(args: argparse.Namespace, topology: Topology, parts: Partition) -> list[str]:
    num_cores = sum(len(stream.cores) for stream in parts.streams)
    quota = topology.cpu_quota
    return [
        "",
        "CPU quota: " + ("none" if quota is None else f"{quota:g} cores, by the cgroup"),
        f"cores: {num_cores}, "
        + (
            "as given"
            if args.num_cores is not None
            else "all that the affinity mask, the cpuset and the quota allow"
        ),
        f"streams: {len(parts.streams)}, "
        + ("as given" if args.num_streams is not None else _default_reason(parts)),
    ]


def _default_reason(parts: Partition) -> str:
    if all(core.l3 is not None for stream in parts.streams for core in stream.cores):
        return "one per L3 cache of these cores"
    return "one per NUMA node or package: the machine does not report its L3 caches"
