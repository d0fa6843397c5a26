"""`python -m deepsched`: machine, budget, versions and diagnosis as JSON, for bug reports."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import psutil

from deepsched.doctor import check_hardware
from deepsched.doctor.versions import installed_packages
from deepsched.errors import DeepschedError
from deepsched.machine.inventory import read_machine
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.runtime.library import describe_library
from deepsched.version import __version__


def diagnose() -> dict[str, Any]:
    """What a bug report needs; an error in place of what cannot be told."""
    report: dict[str, Any] = {
        "deepsched": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "memory_bytes": psutil.virtual_memory().total,
        "affinity": sorted(os.sched_getaffinity(0)),
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


if __name__ == "__main__":
    print(json.dumps(diagnose(), indent=2))
