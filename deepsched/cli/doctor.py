"""`deepsched doctor`: finds what slows inference down on this machine, and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from deepsched.cli.console import Console
from deepsched.cli.files import to_json
from deepsched.doctor import Check, Diagnosis, Status, check_hardware
from deepsched.formatting import printable

_EPILOG = """\
statuses:
  ok       nothing to do
  warn     it costs speed, accuracy or memory; the line after the arrow says what to do
  unknown  the machine does not report it

"as far as this container sees": cgroups above the container's own may impose tighter limits, which
are not visible inside.

checks:
  instructions_fp32, _int8, _fp16, _bf16
                  instruction sets that all usable CPUs have, and what ONNX Runtime does with them
  affinity        the affinity mask, compared with the online CPUs of the cpuset
  cpuset          the CPUs that the cgroup allows
  streams         whether the engines of this process may still use their CPUs; call
                  deepsched.check_hardware() in a program to see that program's
  leases          whether other processes of deepsched have cores that this one may use
  cpu_quota       the cgroup's CPU quota in cores, compared with the usable cores
  throttling      share of the quota's periods in which it was used up since the cgroup was created,
                  and for how long threads were throttled, in s summed over CPUs
  smt             hardware threads per core, and whether this process has all threads of its cores
  core_kinds      whether fast and slow cores are mixed (hybrid CPUs)
  core_latency    round trip of a cache line between the cores in ns, measured twice, two seconds
                  apart: whether cores share a cache as the kernel says, and whether that changes
  numa            the NUMA nodes of the cores in use
  numa_balancing  whether the kernel migrates memory between nodes
  memory_nodes    whether memory may be allocated on the nodes of the cores in use
  memory          the machine's memory, the cgroup's limits (GiB; above memory.high it is reclaimed
                  and threads stall), processes killed, and stalls on memory pressure
  shared_memory   free space in /dev/shm (GiB)
  huge_pages      transparent huge pages
  governor        frequency driver, governor and frequency cap
  boost           whether cores may exceed their base frequency
  steal           share of busy time that a virtual machine waited for its host
  contention      whether other processes keep the cores busy just now: the kernel's CPU pressure,
                  and the load average per online core
  thread_pools    BLAS and OpenMP libraries in this process with their thread counts; call
                  deepsched.check_hardware() in a program to see that program's
  packages        versions
  onnxruntime     the library of the kernels, and packages that overwrite it

fields of the JSON:
  num_warnings    number of checks with status warn
  checks          per check: name, status, found (the facts), meaning (what they do to inference),
                  advice (what to do), data (the facts for programs: sizes in bytes, frequencies in
                  kHz, shares from 0 to 1, CPUs and nodes by OS number)

exit codes:
  0    nothing to do
  1    some check warns, or stdout cannot be written
  2    invalid arguments, or a machine that cannot be read
  141  output pipe closed early, as with `| head`
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Checks what decides inference speed on this machine: the CPUs, the limits on this "
        "process, kernel settings, and installed software. Changes nothing; takes a few seconds, "
        "since it looks twice at the latency between the cores."
    )
    parser.epilog = _EPILOG
    parser.add_argument(
        "--sysfs",
        metavar="ROOT",
        default="/",
        help="folder with another machine's sys/ and proc/; checks of this process are then "
        "unknown",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show only warnings")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis. Returns 1 if some check warns."""
    diagnosis = check_hardware(args.sysfs, watch=True)
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
    text = Text(printable(check.found, keep="\n"), overflow="fold")
    if check.meaning:
        text.append(f"\n{check.meaning}", "dim")
    if check.advice:
        text.append(f"\n→ {check.advice}", "bold")
    return text
