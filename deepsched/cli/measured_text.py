"""What `deepsched topology --measure` prints below the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.padding import Padding

from deepsched.cli.console import Console
from deepsched.cli.heat_map import draw_lines
from deepsched.formatting import counted
from deepsched.machine.contention import contention_notes
from deepsched.machine.measured import MeasuredMachine
from deepsched.machine.sysfs import format_cpu_list


def print_measured(console: Console, measured: MeasuredMachine) -> None:
    """Prints the heat map, the groups with their bandwidths, and what follows."""
    look = measured.look
    console.print("\nmeasured: round trips of a cache line between two cores, ns", style="bold")
    if not math.isnan(look.memory_ns):
        for row in draw_lines(look, console.width):
            console.print(row, soft_wrap=True)
    console.print()
    for fact in _facts(measured):
        console.print(fact, soft_wrap=True)
    for note in _notes(measured):
        console.print(f"\n{note}")
    for finding in measured.findings:
        console.print(f"\n{finding.message}", soft_wrap=True)
        console.print(Padding(finding.consequence, (0, 0, 0, 2), expand=False))
    if len(look.cpus) > 1 and look.sharing and not measured.findings:
        console.print("\nThis is what the kernel says as well.")


def _facts(measured: MeasuredMachine) -> Iterator[str]:
    look = measured.look
    if not math.isnan(look.memory_ns):
        yield f"one load from memory: {look.memory_ns:.0f} ns"
    if measured.core_bandwidth is not None:
        yield f"one core reads {_gb(measured.core_bandwidth)} from memory"
    for group, bandwidth in zip(look.sharing, measured.group_bandwidths, strict=True):
        cpus = format_cpu_list(look.cpus[place] for place in group)
        reads = "" if bandwidth is None else f"; together they read {_gb(bandwidth)}"
        if len(group) > 1:
            yield f"CPUs {cpus} share a last-level cache{reads}"
        elif len(look.cpus) > 1:
            yield f"CPU {cpus} shares its last-level cache with no other of these"


def _notes(measured: MeasuredMachine) -> Iterator[str]:
    look = measured.look
    if look.refused:
        yield (
            f"No thread could be pinned, so nothing was measured: {look.refused}. The picture "
            "above is the kernel's word alone."
        )
    elif len(look.cpus) == 1:
        yield "There is one core: no latency between cores to measure."
    elif look.num_missing:
        yield (
            f"{counted(look.num_missing, 'core')} had no time to be measured: others kept them "
            "busy. They are left where the kernel has them."
        )
    yield from contention_notes(measured.others_share, 0.0)


def _gb(bandwidth: float) -> str:
    return f"{bandwidth / 1e9:.1f} GB/s"
