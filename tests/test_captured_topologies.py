"""Real machines, captured, against what hwloc 2.9 reads from the same files.

The captures are no part of the project: see DEEPSCHED_TOPOLOGIES below.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepsched.doctor import check_hardware
from deepsched.machine.partition import partition
from deepsched.machine.topology import Core, Topology

FOLDER = Path(
    os.environ.get("DEEPSCHED_TOPOLOGIES") or Path(__file__).parents[2] / "shared" / "topologies"
)

if not (FOLDER / "expected.json").is_file():
    pytest.skip(
        f"no captured machines in {FOLDER}; DEEPSCHED_TOPOLOGIES names a folder with "
        "topologies.tar.xz and expected.json",
        allow_module_level=True,
    )

EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="session")
def folders() -> Iterator[dict[str, Path]]:
    # 18,000 files: in memory where there is room, not in pytest's folder, which it keeps a while.
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 200 << 20
    with (
        tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder,
        tarfile.open(FOLDER / "topologies.tar.xz") as archive,
    ):
        archive.extractall(folder, filter="data")
        yield {name: Path(folder, name) for name in EXPECTED}


@pytest.fixture(scope="session")
def captured(folders: dict[str, Path]) -> dict[str, Topology]:
    return {name: Topology.from_sysfs(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_reads_a_machine_as_hwloc_does(name: str, captured: dict[str, Topology]) -> None:
    expected = EXPECTED[name]
    topology = captured[name]
    assert list(topology.cpus) == expected["allowed_pus"]
    core_of = {cpu: core for core in topology.cores for cpu in core.cpus}
    for cpu in expected["cpus"]:
        if cpu["allowed"]:
            assert _reading(cpu["cpu"], core_of) == _hwloc_reading(cpu, core_of)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("level", ["package", "numa_node", "l3", "l2"])
def test_cores_that_share_something_are_neighbours(
    name: str, level: str, captured: dict[str, Topology]
) -> None:
    ids = [getattr(core, level) for core in captured[name].cores]
    starts = [number for index, number in enumerate(ids) if index == 0 or ids[index - 1] != number]
    assert len(starts) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "least", "most_capable"),
    [
        ("20em64t-hybrid-1p6c2t+2ca4co1t", range(12, 20), range(12)),
        ("nvidia-dgx-gb10", [*range(5), *range(10, 15)], [*range(5, 10), *range(15, 20)]),
    ],
)
def test_hybrid_machine_has_two_kinds(
    name: str, least: list[int], most_capable: list[int], captured: dict[str, Topology]
) -> None:
    cores = captured[name].cores
    assert {cpu for core in cores for cpu in core.cpus if core.kind == 0} == set(least)
    assert {cpu for core in cores for cpu in core.cpus if core.kind == 1} == set(most_capable)


@pytest.mark.parametrize("name", EXPECTED)
def test_doctor_reads_a_machine(name: str, folders: dict[str, Path]) -> None:
    diagnosis = check_hardware(folders[name])
    assert json.loads(json.dumps(diagnosis.to_dict())) == diagnosis.to_dict()
    assert all(check.found for check in diagnosis.checks)


@pytest.mark.parametrize(
    ("name", "num_fast"), [("20em64t-hybrid-1p6c2t+2ca4co1t", 6), ("nvidia-dgx-gb10", 10)]
)
def test_doctor_tells_how_many_fast_cores_there_are(
    name: str, num_fast: int, folders: dict[str, Path], captured: dict[str, Topology]
) -> None:
    assert f"num_cores={num_fast} " in check_hardware(folders[name])["core_kinds"].advice
    streams = partition(captured[name], num_cores=num_fast).streams
    assert len({core.kind for stream in streams for core in stream.cores}) == 1


def test_doctor_speaks_of_arm_on_an_arm_machine(folders: dict[str, Path]) -> None:
    arms = [it for it in folders.values() if "Features" in (it / "proc/cpuinfo").read_text()]
    assert arms
    for folder in arms:
        diagnosis = check_hardware(folder)
        assert "NEON" in diagnosis["instructions_fp32"].found
        assert not re.search(r"AVX|AMX|VNNI|F16C|x86|Intel|AMD|intel_|hypervisor", str(diagnosis))
        assert {check.name for check in diagnosis.warnings} <= {"core_kinds"}


def test_doctor_of_a_dgx_spark(folders: dict[str, Path]) -> None:
    diagnosis = check_hardware(folders["nvidia-dgx-gb10"])
    found = {check.name: (str(check.status), check.found) for check in diagnosis.checks}
    wanted = {
        "instructions_int8": ("ok", "int8 matrix instructions (i8mm)"),
        "instructions_fp16": ("ok", "fp16 arithmetic (fphp, asimdhp)"),
        "instructions_bf16": ("ok", "bf16 matrix instructions"),
        "smt": ("ok", "off or not present: each CPU is a core"),
        "core_kinds": (
            "warn",
            "2 kinds of core, the most capable first: 10 (CPUs 5-9,15-19), 10 (CPUs 0-4,10-14)",
        ),
        "numa": ("ok", "all cores that deepsched uses are in node 0"),
        "governor": ("ok", "performance of cppc_cpufreq"),
        # Its driver shows the switch as off for CPUs that have no boost.
        "boost": ("unknown", "off; it is unknown whether these CPUs have it"),
    }
    assert found.items() >= wanted.items()


def _reading(cpu: int, core_of: dict[int, Core]) -> dict[str, Any]:
    core = core_of[cpu]
    return {
        "core_cpus": list(core.cpus),
        "package": core.package,
        "numa_nodes": [] if core.numa_node is None else [core.numa_node],
        "l2_cpus": _sharers(core, "l2", core_of),
        "l3_cpus": _sharers(core, "l3", core_of),
    }


def _sharers(core: Core, level: str, core_of: dict[int, Core]) -> list[int] | None:
    number = getattr(core, level)
    if number is None:
        return None
    return sorted(cpu for cpu, other in core_of.items() if getattr(other, level) == number)


def _hwloc_reading(cpu: dict[str, Any], allowed: dict[int, Core]) -> dict[str, Any]:
    """hwloc's, cut down to the CPUs that the process may use."""
    reading = {name: cpu[name] for name in ("package", "numa_nodes")}
    for name in ("core_cpus", "l2_cpus", "l3_cpus"):
        cpus = cpu[name]
        reading[name] = None if cpus is None else [other for other in cpus if other in allowed]
    return reading
