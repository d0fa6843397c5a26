"""The files of /sys, /proc and of control groups: a machine is read from them, or TopologyError
says which file is wrong; what is said of limits is a number or nothing. A machine that was read is
divided into streams, or StreamConfigError says why not. Left out: machines of more than 256 CPUs,
each of which takes a millisecond or several to be read.

JSON: texts by path, below a folder in the place of `/`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from deepsched.doctor import check_hardware
from deepsched.errors import StreamConfigError, TopologyError
from deepsched.machine import cgroup, sysfs
from deepsched.machine.partition import partition
from deepsched.machine.topology import Core, Topology
from fuzz.folders import folder
from fuzz.json_values import mutated
from fuzz.target import Target
from tests.support.sysfs_tree import SysfsTree, write_machine

_LIMITS = (
    *(cgroup.allowed_cpus, cgroup.cpu_quota, cgroup.throttling, cgroup.throttled_seconds),
    *(cgroup.memory_limit, cgroup.memory_left, cgroup.memory_high, cgroup.memory_stall),
    *(cgroup.oom_kills, sysfs.offline_cpus),
)

_MOST_CPUS = 256


def check(data: bytes) -> None:
    files = _files(data)
    root = folder("machine") / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path, text in files.items():
        _write(root, path, text)
    if len(_try(_online, root) or ()) > _MOST_CPUS:
        return
    for read in _LIMITS:
        _try(read, root)
    _try(check_hardware, root)
    for controller in ("cpu", "cpuset", "memory"):
        cgroup.view(root, controller)
    topology = _try(Topology.from_sysfs, root)
    if topology is not None:
        _check_streams(topology)


def _online(root: Path) -> sysfs.CpuSet:
    return sysfs.read_cpu_list(root / "sys/devices/system/cpu", "online")


def _files(data: bytes) -> dict[str, str]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {"proc/self/mountinfo": data.decode("utf-8", "replace")}
    return found if isinstance(found, dict) else {}


def _write(root: Path, path: str, text: Any) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        return  # outside of the folder
    try:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(text).encode("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        return  # no name of a file


def _try(read: Any, root: Path) -> Any:
    try:
        return read(root)
    except TopologyError as error:
        assert str(error)
        return None


def _check_streams(topology: Topology) -> None:
    cpus = [cpu for core in topology.cores for cpu in core.cpus]
    assert len(cpus) == len(set(cpus)), "a CPU is in two cores"
    assert cpus
    try:
        streams = partition(topology, num_streams=2).streams
    except StreamConfigError as error:
        assert str(error)
        return
    served = [cpu for stream in streams for cpu in stream.cpus]
    assert len(served) == len(set(served)), "a CPU is in two streams"


def _seeds() -> Iterator[bytes]:
    cores = tuple(
        Core(cpus=(i, i + 4), l2=i, l3=i // 2, numa_node=i // 2, package=0, kind=i % 2)
        for i in range(4)
    )
    for old in (False, True):
        with tempfile.TemporaryDirectory() as root:
            tree = write_machine(Path(root), Topology(cores, cpu_quota=1.5), old)
            _add_group(tree)
            texts = {
                str(path.relative_to(root)): path.read_text()
                for path in sorted(Path(root).rglob("*"))
                if path.is_file()
            }
        yield json.dumps(texts).encode()
    yield json.dumps(
        {
            "proc/cpuinfo": "processor\t: 0\nphysical id\t: 0\ncore id\t: 0\n\nprocessor\t: 1\n",
            "proc/self/cgroup": "4:cpu,cpuset:/a\n3:memory:/a",
            "proc/self/mountinfo": "1 1 0:2 / /c rw - cgroup none rw,cpu,cpuset,memory",
            "c/a/cpuset.cpus": "0-1",
            "c/a/cpu.cfs_quota_us": "50000",
            "c/a/cpu.cfs_period_us": "100000",
            "c/a/memory.limit_in_bytes": "1000000",
            "c/a/memory.oom_control": "oom_kill 3",
        }
    ).encode()


def _add_group(tree: SysfsTree) -> None:
    group = "sys/fs/cgroup/job"
    tree.write("proc/meminfo", "MemAvailable:   1000 kB")
    tree.write(f"{group}/cpuset.cpus.effective", "0-3,5")
    tree.write(f"{group}/memory.max", 10**9)
    tree.write(f"{group}/memory.high", 10**8)
    tree.write(f"{group}/memory.current", 10**7)
    tree.write(f"{group}/memory.stat", "inactive_file 5\nactive_file 7")
    tree.write(f"{group}/memory.events", "oom_kill 1")
    tree.write(f"{group}/memory.pressure", "some avg10=0.00 total=55\nfull total=1")
    tree.write(f"{group}/cpu.stat", "usage_usec 9\nnr_periods 4\nthrottled_usec 3")


_TEXTS = (
    *(
        "",
        "0",
        "-1",
        "1",
        "0-1",
        "0-7,9",
        "3-1",
        "0-",
        "-",
        "0-99999999999999",
        "max",
        "max 100000",
    ),
    *(
        "4294967295",
        "ffffffff,ffffffff",
        "0-255",
        "9" * 400,
        "9" * 5000,
        "1 0",
        "x",
        "\0",
        "/..",
        "٣",
    ),
    *("100000 1", "oom_kill 0x", "some total=", "Instruction", "Data", "0::/../a", "0::/"),
)


def _mutate(data: bytes, random: Random) -> bytes:
    """Another text in a file, or a word of one; or other values anywhere."""
    files = _files(data)
    if not files or random.random() < 0.3:
        return mutated(data, random)
    for _ in range(random.randint(1, 4)):
        path = random.choice(sorted(files))
        words = str(files[path]).split(" ")
        words[random.randrange(len(words))] = random.choice(_TEXTS)
        files[path] = random.choice((" ".join(words), random.choice(_TEXTS)))
    return json.dumps(files).encode()


TARGET = Target(check, _seeds, _mutate, max_bytes=20_000)
