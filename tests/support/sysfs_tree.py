"""Writes the files of a machine, as the kernel would show them below /sys and /proc."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from deepsched.machine.sysfs import format_cpu_list
from deepsched.machine.topology import Topology


class SysfsTree:
    """A machine below a folder; each method adds files.

    Args:
        root: the folder; made if need be.
        old: as kernels before 5.3 wrote it: hex masks alone, under the older names.
    """

    def __init__(self, root: Path, old: bool = False) -> None:
        self.root = root
        self.old = old
        root.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def write_cpu_file(self, cpu: int, path: str, text: object) -> None:
        self.write(f"sys/devices/system/cpu/cpu{cpu}/{path}", text)

    def add_cpu(
        self,
        cpu: int,
        core: Collection[int] | None = None,
        package: int | None = 0,
        core_id: int | None = None,
    ) -> None:
        """A CPU whose core has these hardware threads: itself alone, unless given."""
        core = {cpu} if core is None else core
        name = "thread_siblings" if self.old else "core_cpus"
        self._write_set(cpu, f"topology/{name}", f"topology/{name}_list", core)
        self.write_cpu_file(cpu, "topology/core_id", min(core) if core_id is None else core_id)
        if package is not None:
            self.write_cpu_file(cpu, "topology/physical_package_id", package)

    def add_cache(
        self, level: int, cpus: Collection[int], kind: str = "Unified", index: int | None = None
    ) -> None:
        """A cache that these CPUs share; `index` is its folder's number, the level unless given."""
        folder = f"cache/index{level if index is None else index}"
        for cpu in cpus:
            self.write_cpu_file(cpu, f"{folder}/level", level)
            self.write_cpu_file(cpu, f"{folder}/type", kind)
            self._write_set(cpu, f"{folder}/shared_cpu_map", f"{folder}/shared_cpu_list", cpus)

    def add_node(self, node: int, cpus: Iterable[int]) -> None:
        folder = f"sys/devices/system/node/node{node}"
        if self.old:
            self.write(f"{folder}/cpumap", hex_mask(cpus))
        else:
            self.write(f"{folder}/cpulist", format_cpu_list(cpus))

    def add_flags(self, flags: str, cpus: Iterable[int], field: str = "flags") -> None:
        """Instruction sets in proc/cpuinfo; `field` is "Features" on Arm."""
        for cpu in cpus:
            self._append("proc/cpuinfo", f"processor\t: {cpu}\n{field}\t: {flags}\n")

    def add_frequency(
        self, cpus: Iterable[int], driver: str, governor: str, preference: str | None = None
    ) -> None:
        for cpu in cpus:
            self.write_cpu_file(cpu, "cpufreq/scaling_driver", driver)
            self.write_cpu_file(cpu, "cpufreq/scaling_governor", governor)
            if preference is not None:
                self.write_cpu_file(cpu, "cpufreq/energy_performance_preference", preference)

    def set_online(self, cpus: Iterable[int]) -> None:
        self.write("sys/devices/system/cpu/online", format_cpu_list(cpus))

    def add_mount(self, kind: str, point: str, options: str = "rw") -> None:
        """To the short table, which does not say what part of a hierarchy is mounted."""
        self._append("proc/mounts", f"none {point} {kind} {options} 0 0")

    def add_mountinfo(self, kind: str, point: str, options: str = "rw", root: str = "/") -> None:
        self._append(
            "proc/self/mountinfo",
            f"30 23 0:26 {root} {point} rw,relatime shared:9 - {kind} none {options}",
        )

    def _append(self, path: str, line: str) -> None:
        file = self.root / path
        self.write(path, (file.read_text() if file.exists() else "") + line)

    def _write_set(self, cpu: int, mask: str, cpu_list: str, cpus: Iterable[int]) -> None:
        if self.old:
            self.write_cpu_file(cpu, mask, hex_mask(cpus))
        else:
            self.write_cpu_file(cpu, cpu_list, format_cpu_list(cpus))


def hex_mask(cpus: Iterable[int]) -> str:
    """Words of 32 bits, the most significant first."""
    bits = sum(1 << cpu for cpu in set(cpus))
    words = range(max(1, -(-bits.bit_length() // 32)))
    return ",".join(f"{bits >> 32 * word & 0xFFFFFFFF:08x}" for word in reversed(words))


def write_machine(root: Path, topology: Topology, old: bool = False) -> SysfsTree:
    """A machine that reads as `topology`."""
    tree = SysfsTree(root, old)
    tree.set_online(topology.cpus)
    for core in topology.cores:
        for cpu in core.cpus:
            tree.add_cpu(cpu, core.cpus, core.package)
            tree.write_cpu_file(cpu, "cpu_capacity", 400 * (core.kind + 1))
    for level, name in ((2, "l2"), (3, "l3")):
        for cpus in _by_id(topology, name).values():
            tree.add_cache(level, cpus)
    for node, cpus in _by_id(topology, "numa_node").items():
        tree.add_node(node, cpus)
    if topology.cpu_quota is not None:
        tree.add_mount("cgroup2", "/sys/fs/cgroup")
        tree.write("proc/self/cgroup", "0::/job")
        tree.write("sys/fs/cgroup/job/cpu.max", f"{round(topology.cpu_quota * 100_000)} 100000")
    return tree


def _by_id(topology: Topology, name: str) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for core in topology.cores:
        number = getattr(core, name)
        if number is not None:
            groups.setdefault(number, []).extend(core.cpus)
    return groups
