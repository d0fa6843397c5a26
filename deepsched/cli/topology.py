"""`deepsched topology`: the machine, the streams that would be made of it, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.tree import Tree

from deepsched.errors import OptionError
from deepsched.partition import Partition, partition
from deepsched.topology import Core, Topology

_COLOURS = ("green", "cyan", "yellow", "magenta", "blue", "red")


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "topology",
        help="show the machine and the streams it would make",
        description="Shows the cores that this process may use, the streams that multi_stream "
        "would make of them, and what is unwise about these.",
    )
    parser.add_argument("-ncores", "--num_cores", type=int, help="physical cores to use")
    parser.add_argument("-nstreams", "--num_streams", type=int, help="streams to make")
    parser.add_argument("--threads_per_core", type=int, default=1, help="hardware threads of each")
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument("--sysfs", metavar="ROOT", help="folder with a machine's sys/ and proc/")
    machine.add_argument(
        "--synthetic", metavar="P:N:L:C:T",
        help="a made-up machine: packages, NUMA nodes in each, L3s in each, cores in each, "
        "hardware threads in each; 2:1:4:8:2 for example",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the machine and its streams."""
    topology = _machine(args)
    parts = partition(topology, args.num_cores, args.num_streams, args.threads_per_core)
    if args.json:
        print(json.dumps(to_dict(topology, parts), indent=2))
        return
    console = Console(highlight=False)
    console.print(_picture(topology, parts))
    for line in _reasons(args, topology, parts):
        console.print(line, soft_wrap=True)


def to_dict(topology: Topology, parts: Partition) -> dict[str, Any]:
    """Machine, streams and warnings, for JSON."""
    return {
        "topology": topology.to_dict(),
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
        "warnings": [warning.to_dict() for warning in parts.warnings],
    }


def _machine(args: argparse.Namespace) -> Topology:
    if args.sysfs:
        return Topology.from_sysfs(args.sysfs)
    if args.synthetic:
        try:
            counts = [int(part) for part in args.synthetic.split(":")]
        except ValueError:
            counts = []
        if not 1 <= len(counts) <= 5:
            raise OptionError(f"--synthetic must look like 2:1:4:8:2, got {args.synthetic!r}")
        return Topology.synthetic(*counts)
    return Topology.detect()


def _picture(topology: Topology, parts: Partition) -> Tree:
    stream_of = {core.cpus: stream.index for stream in parts.streams for core in stream.cores}
    tree = Tree(f"{len(topology.cores)} usable cores, {len(topology.cpus)} CPUs")
    branches: dict[tuple[int | str | None, ...], Tree] = {}
    for core in topology.cores:
        path: tuple[int | str | None, ...] = ()
        parent = tree
        for name, number in (
            ("package", core.package),
            ("NUMA node", core.numa_node),
            ("L3", core.l3),
        ):
            path = (*path, number)
            if number is not None:
                if path not in branches:
                    branches[path] = parent.add(f"{name} {number}")
                parent = branches[path]
        parent.add(_describe(core, stream_of.get(core.cpus)))
    return tree


def _describe(core: Core, stream: int | None) -> str:
    cpus = ", ".join(str(cpu) for cpu in core.cpus)
    text = f"core of CPU {cpus}" if len(core.cpus) == 1 else f"core of CPUs {cpus}"
    if core.kind:
        text += f", kind {core.kind}"
    if stream is None:
        return f"[dim]{text}, unused[/]"
    return f"[{_COLOURS[stream % len(_COLOURS)]}]{text} → stream {stream}[/]"


def _reasons(args: argparse.Namespace, topology: Topology, parts: Partition) -> list[str]:
    num_cores = sum(len(stream.cores) for stream in parts.streams)
    quota = topology.cpu_quota
    lines = [
        "CPU quota: " + ("none" if quota is None else f"{quota:g} cores, of the cgroup"),
        f"cores: {num_cores}, "
        + (
            "as asked for"
            if args.num_cores is not None
            else "all that the affinity mask, the cpuset and the quota allow"
        ),
        f"streams: {len(parts.streams)}, "
        + ("as asked for" if args.num_streams is not None else _default_reason(parts)),
    ]
    for stream in parts.streams:
        lines.append(f"  stream {stream.index}: CPUs {', '.join(map(str, stream.cpus))}")
    lines += [f"note ({warning.kind}): {warning}" for warning in parts.warnings]
    return lines


def _default_reason(parts: Partition) -> str:
    if all(core.l3 is not None for stream in parts.streams for core in stream.cores):
        return "one per L3 cache of these cores"
    return "one per NUMA node or package: the machine does not tell its L3 caches"
