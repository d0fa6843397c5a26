"""`deepsched doctor`: what slows inference down on this machine, and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from deepsched.cli.console import Console
from deepsched.cli.files import to_json
from deepsched.cli.help import HelpFormatter
from deepsched.doctor import Check, Diagnosis, Status, check_hardware

_EPILOG = """\
statuses:
  ok       nothing to do
  warn     it costs speed, accuracy or memory; after the arrow: what to do
  unknown  the machine does not tell
"as far as this container sees": cgroups above its own may limit it as well,
and are not shown inside.

checks:
  instructions_fp32, _int8, _fp16, _bf16
                  what all CPUs that may be used have, and what ONNX Runtime
                  makes of it
  affinity        the affinity mask, against the online CPUs of the cpuset
  cpuset          the CPUs that the cgroup allows
  cpu_quota       the CPU time that the cgroup grants, in cores, against the
                  usable cores
  throttling      the share of the quota's periods in which it was used up,
                  since the cgroup was made, and for how long that stopped
                  threads, in s summed over CPUs
  smt             hardware threads of a core, and whether the process has all
                  those of its cores
  core_kinds      fast and slow cores (hybrid CPUs) side by side
  numa            the NUMA nodes that the cores in use lie in
  numa_balancing  whether the kernel moves memory between nodes
  memory_nodes    whether memory may come from the nodes of the cores in use
  memory          the machine's, the cgroup's limits (GiB; memory.high slows a
                  process down before), how many processes were killed, and
                  for how long threads waited for memory
  shared_memory   room in /dev/shm (GiB)
  huge_pages      transparent huge pages
  governor        who sets the frequency, how, and how far up it may go
  boost           whether cores may exceed their base frequency
  steal           the share of its busy time that a virtual machine waited for
                  its host
  thread_pools    BLAS and OpenMP libraries in this process, and how many
                  threads each has; call deepsched.check_hardware() in a
                  program to see the program's
  packages        versions
  onnxruntime     the library of the kernels, and packages that overwrite it

fields of the JSON:
  num_warnings    how many checks have the status warn
  checks          of each: name, status, found (what is there), meaning (what
                  that does to inference), advice (what to do), data (what is
                  there, for programs: sizes in bytes, frequencies in kHz,
                  shares from 0 to 1, CPUs and nodes by the OS's numbers)

exit codes:
  0    nothing to do
  1    something warns
  2    arguments that cannot be had, or a machine that cannot be read
  141  nobody reads the output to its end, as with `| head`
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="say what slows inference down on this machine, and what to do",
        description="Looks at what decides how fast models run here: the CPUs, what of them this\n"
        "process may use, how the kernel runs them, and the software. Measures\n"
        "and changes nothing.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--sysfs",
        metavar="ROOT",
        default="/",
        help="folder with another machine's sys/ and proc/; the checks of this process are then "
        "unknown",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show only what warns")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what is found. Returns 1 if something warns."""
    diagnosis = check_hardware(args.sysfs)
    if args.json:
        print(to_json(diagnosis.to_dict()))
    else:
        _print(diagnosis, diagnosis.warnings if args.quiet else diagnosis.checks)
    return 1 if diagnosis.warnings else 0


def _print(diagnosis: Diagnosis, shown: Sequence[Check]) -> None:
    table = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(), padding=(0, 2, 0, 0))
    for check in shown:
        status = Text(str(check.status), _STYLES[check.status])
        table.add_row(status, check.name, _explained(check))
    console = Console()
    console.print(table)
    counts = {
        status: sum(check.status == status for check in diagnosis.checks) for status in Status
    }
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))


_STYLES = {Status.ok: "green", Status.warn: "bold yellow", Status.unknown: "dim"}


def _explained(check: Check) -> Text:
    text = Text(check.found, overflow="fold")
    if check.meaning:
        text.append(f"\n{check.meaning}", "dim")
    if check.advice:
        text.append(f"\n→ {check.advice}", "bold")
    return text
