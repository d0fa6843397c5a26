"""`deepsched report`: what a bug report needs, as JSON."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import psutil

from deepsched.cli.files import to_json
from deepsched.doctor import check_hardware
from deepsched.doctor.versions import installed_packages
from deepsched.errors import DeepschedError
from deepsched.machine.affinity import own_cpus
from deepsched.machine.inventory import read_machine
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.runtime.library import describe_library
from deepsched.version import __version__

_EPILOG = """\
fields of the JSON:
  deepsched, python, platform, machine, memory_bytes, affinity
                       version, interpreter, system, memory, and the CPUs of the affinity mask
  packages             versions of the packages it uses
  onnxruntime_library  the library of the kernels
  topology, streams, warnings, forbidden_cpus
                       as in `deepsched topology --json`
  diagnosis            as in `deepsched doctor --json`

Where something cannot be read, it has an `error`.

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments
  141  output pipe closed early, as with `| head`
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Prints the machine, what of it this process may use, the streams, the versions and "
        "doctor's findings as JSON, to paste into a bug report."
    )
    parser.epilog = _EPILOG
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    print(to_json(bug_report()))


def bug_report() -> dict[str, Any]:
    """Machine, budget, versions and diagnosis; an `error` in place of what cannot be read."""
    report: dict[str, Any] = {
        "deepsched": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "memory_bytes": _total_memory(),
        "affinity": sorted(own_cpus()),
        "packages": installed_packages(),
    }
    try:
        report["onnxruntime_library"] = describe_library()
    except DeepschedError as error:
        report["onnxruntime_library"] = {"error": str(error)}
    try:
        topology = Topology.detect()
        report |= read_machine(topology).to_dict(partition(topology))
        report["diagnosis"] = check_hardware().to_dict()
    except DeepschedError as error:
        report["topology"] = {"error": str(error)}
    return report


def _total_memory() -> int | None:
    try:
        return int(psutil.virtual_memory().total)
    except OSError:  # no /proc
        return None
