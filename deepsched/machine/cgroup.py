"""Limits of the process's control group (cpuset, CPU quota, memory), and how often they were hit.

Supports version 2 (Documentation/admin-guide/cgroup-v2.rst), version 1
(Documentation/admin-guide/cgroup-v1/cpusets.rst, Documentation/scheduler/sched-bwc.rst), the
"cpuset" file system that preceded both, and any mix of them. A controller is in one hierarchy; only
the mount table has which one, and where it is mounted.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deepsched.machine.sysfs import CpuSet, decimal, read_cpu_list, read_int, read_text


class View(enum.Enum):
    """How much of a controller's hierarchy is visible. A group is also limited by its ancestors."""

    nothing = enum.auto()
    """No mount shows the process's own group."""
    part = enum.auto()
    """Its own group and some ancestors, but not the root: what a container sees."""
    whole = enum.auto()
    """Its own group and all ancestors."""
    no_cgroups = enum.auto()
    """The kernel was built without control groups."""


def view(root: Path, controller: str) -> View:
    """How much is visible for a controller ("cpu", "cpuset" or "memory")."""
    kinds = read_text(root / "proc/filesystems")
    if kinds and not _TYPES.keys() & set(kinds.split()):
        return View.no_cgroups
    groups, version = _read_groups(root, controller), _read_version(root, controller)
    found = View.nothing
    for mount in _read_mounts(root):
        if mount.version == version and (version == 2 or controller in mount.options):
            top, own = root / mount.point.lstrip("/"), _place(mount, groups[version])
            if own is not None and os.path.isdir(top / own):
                if mount.root == "/" and not _is_below_the_top(top, version):
                    return View.whole
                found = View.part
    return found


def _read_version(root: Path, controller: str) -> int:
    """The version of the controller's hierarchy: 2 unless it is listed in one of version 1."""
    if any(controller in mount.options for mount in _read_mounts(root) if mount.version == 1):
        return 1
    lines = (line.split(":") for line in (read_text(root / "proc/self/cgroup") or "").splitlines())
    named = (controller in words[1].split(",") for words in lines if len(words) > 1)
    return 1 if any(named) else 2


def _is_below_the_top(folder: Path, version: int) -> bool:
    """Whether a mount's root is not the hierarchy's root, whose ancestors a cgroup namespace hides.

    In version 2 all groups but the root have cgroup.events; in version 1 only the root has
    release_agent. A capture may lack both files: then it is taken for the root.
    """
    if version == 2:
        return os.path.exists(folder / "cgroup.events")
    has_procs = os.path.exists(folder / "cgroup.procs")
    return has_procs and not os.path.exists(folder / "release_agent")


def allowed_cpus(root: Path) -> CpuSet | None:
    """The CPUs that the process's cpuset allows, possibly including offline ones.

    Args:
        root: the folder with proc/; mount points are relative to it.

    Returns:
        The cpuset of the process's group, or of the nearest ancestor that has one; None if there is
        none: the process may use every CPU.
    """
    for mount, folder in _group_folders(root, "cpuset"):
        cpus = read_cpu_list(folder, *_cpuset_files(mount))
        if cpus:
            return cpus
    return None


def _cpuset_files(mount: _Mount) -> tuple[str, ...]:
    """The files with a group's CPUs, the authoritative one first."""
    if mount.version == 2:  # cpuset.cpus may be empty, which means the parent's
        return ("cpuset.cpus.effective",)
    names = ("cpus", "effective_cpus")  # without prefix: mounted with "noprefix", or as "cpuset"
    if "cpuset_v2_mode" in mount.options:
        names = ("effective_cpus", "cpus")
    return tuple(f"{prefix}{name}" for name in names for prefix in ("cpuset.", ""))


def cpu_quota(root: Path) -> float | None:
    """The CPU quota in cores; None if there is no limit.

    Quotas of ancestors apply as well: this is the smallest from the process's group to the root.
    """
    quotas = [_quota(folder) for _, folder in _group_folders(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """A group's own quota in cores: quota over period, both in microseconds."""
    words = (read_text(folder / "cpu.max") or "").split()  # version 2: "max 100000" is no limit
    if len(words) != 2:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 1: -1 is no limit
        words = [read_text(folder / name) or "" for name in names]
    quota, period = map(decimal, words)
    return quota / period if quota and period else None


class Throttling(NamedTuple):
    """Throttling by a group's CPU quota, since the group was created."""

    seconds: float
    """Throttled time, summed over CPUs: it may exceed the elapsed time."""
    num_throttled: int
    """Number of periods in which the quota was exhausted."""
    num_periods: int
    """Number of periods in which the group ran."""


def throttling(root: Path) -> tuple[Throttling, ...]:
    """Throttling of the process's group and its ancestors, whose quotas apply as well.

    Groups without statistics are omitted.
    """
    stats = [_numbers(read_text(folder / "cpu.stat")) for _, folder in _group_folders(root, "cpu")]
    return tuple(
        Throttling(stat[name] * unit, stat.get("nr_throttled", 0), stat.get("nr_periods", 0))
        for stat in stats
        for name, unit in (("throttled_usec", 1e-6), ("throttled_time", 1e-9))  # version 2, 1
        if name in stat
    )


def throttled_seconds(root: Path) -> tuple[float, ...]:
    """The seconds of `throttling` alone."""
    return tuple(group.seconds for group in throttling(root))


def _numbers(text: str | None) -> dict[str, int]:
    """Parses lines of a name and a number."""
    pairs = (line.split(" ", 1) for line in (text or "").splitlines() if " " in line)
    return {name: number for name, text in pairs if (number := decimal(text)) is not None}


def memory_limit(root: Path) -> int | None:
    """The memory limit in bytes; None if there is no limit.

    The smallest from the process's group to the root.
    """
    limits = [_memory_limit(folder) for _, folder in _group_folders(root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left(root: Path) -> int | None:
    """Bytes that the process can still allocate before somebody is killed; None if not known.

    What files keep in memory is left, too: the kernel takes it back. The smallest of the machine's
    and of those of the process's group and its ancestors.
    """
    found = re.search(
        r"^MemAvailable: +([0-9]{1,20}) kB", read_text(root / "proc/meminfo") or "", re.M
    )
    left = [int(found[1]) * 1024] if found else []
    for _, folder in _group_folders(root, "memory"):
        limit = _memory_limit(folder)
        used = read_int(folder / "memory.current")
        if used is None:
            used = read_int(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            counts = _numbers(read_text(folder / "memory.stat"))
            # With "total_" in version 1, whose other figures leave descendants out.
            files = [
                counts.get(f"total_{kind}_file", counts.get(f"{kind}_file", 0))
                for kind in ("active", "inactive")
            ]
            left.append(limit - used + sum(files))
    return max(0, min(left)) if left else None


def memory_high(root: Path) -> int | None:
    """The memory.high threshold in bytes, above which the kernel throttles; None if unset.

    The smallest from the process's group to the root. Version 2 only.
    """
    limits = [read_int(folder / "memory.high") for _, folder in _group_folders(root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


class MemoryStall(NamedTuple):
    """Time that a group was stalled on memory pressure, since the group was created."""

    seconds: float
    """Time in which at least one of its threads was stalled."""
    busy_seconds: float
    """CPU time of the group, summed over CPUs."""

    @property
    def share(self) -> float:
        """The stalled share of the time that it ran or was stalled."""
        return self.seconds / max(1e-6, self.seconds + self.busy_seconds)


def memory_stall(root: Path) -> MemoryStall | None:
    """Memory pressure of the nearest group with a memory.high (Documentation/accounting/psi.rst).

    None if there is no such group, or no statistics.
    """
    for _, folder in _group_folders(root, "memory"):
        if read_int(folder / "memory.high") is not None:
            text = read_text(folder / "memory.pressure") or ""
            match = re.search(r"^some .*total=([0-9]{1,20})$", text, re.MULTILINE)
            ran = _numbers(read_text(folder / "cpu.stat")).get("usage_usec")
            if match and ran is not None:
                return MemoryStall(int(match[1]) / 1e6, ran / 1e6)
    return None


def oom_kills(root: Path) -> int | None:
    """Number of processes that were OOM-killed at the memory limit.

    In the nearest group with a limit, and its descendants; None if there is no such group, or no
    statistics.
    """
    for _, folder in _group_folders(root, "memory"):
        if _memory_limit(folder) is not None:
            for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
                events = _numbers(read_text(folder / name))
                if "oom_kill" in events:
                    return events["oom_kill"]
    return None


def _memory_limit(folder: Path) -> int | None:
    limit = read_int(folder / "memory.max")  # version 2: "max" is no limit
    if limit is None:
        limit = read_int(folder / "memory.limit_in_bytes")
    return limit if limit is not None and 0 <= limit < _NO_LIMIT else None


_NO_LIMIT = 1 << 60
"""Version 1 shows "no limit" as the largest multiple of the page size in 63 bits."""


def _group_folders(root: Path, controller: str) -> Iterator[tuple[_Mount, Path]]:
    """The folders of the process's group and its ancestors, nearest first, in each mount."""
    groups = _read_groups(root, controller)
    for mount in _read_mounts(root):
        if mount.version == 2 or controller in mount.options:
            for folder in _upwards(root, mount, groups[mount.version]):
                yield mount, folder


def _read_groups(root: Path, controller: str) -> dict[int, str]:
    """Version of the hierarchy -> path of the process's group for this controller in it."""
    # proc/self/cpuset (older than cgroups) holds the path alone, whichever the hierarchy is.
    groups = dict.fromkeys((1, 2), _path(read_text(root / "proc/self/cpuset") or "/"))
    for line in _path(read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            groups[2] = path
        elif controller in controllers.split(","):
            groups[1] = path
    return groups


def _upwards(root: Path, mount: _Mount, group: str) -> Iterator[Path]:
    """The group's folder and its ancestors up to the mount point; some may not exist.

    In a container the mount shows only the part of the hierarchy below `mount.root`. A group
    outside of that part (or shown as "/../name" by a cgroup namespace) is not visible; its nearest
    visible ancestor is then the mount point.
    """
    top = root / mount.point.lstrip("/")
    place = _place(mount, group) or PurePosixPath()
    for folder in (place, *place.parents):
        yield top / folder


def _place(mount: _Mount, group: str) -> PurePosixPath | None:
    """The group's path relative to the mount point; None if it is not visible there."""
    path = PurePosixPath(group)
    inside = path.is_relative_to(mount.root) and ".." not in path.parts
    return path.relative_to(mount.root) if inside else None


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    root: str
    """The group at the mount point."""
    version: int
    options: frozenset[str]
    """In version 1 they include the controllers."""


def _read_mounts(root: Path) -> list[_Mount]:
    """The mounts of control groups (Documentation/filesystems/proc.rst, 3.5 for mountinfo)."""
    mounts = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        # Split at single spaces: a mount's source may be empty.
        words, _, rest = (part.split(" ") for part in line.partition(" - "))
        if len(words) > 4 and len(rest) > 2 and rest[0] in _TYPES:
            mounts.append(_mount(words[4], words[3], rest[0], rest[2]))
    if not mounts:  # a capture may only have the short table
        for line in (read_text(root / "proc/mounts") or "").splitlines():
            words = line.split(" ")
            if len(words) > 3 and words[2] in _TYPES:
                mounts.append(_mount(words[1], "/", words[2], words[3]))
    return mounts


def _mount(point: str, shown: str, kind: str, options: str) -> _Mount:
    names = frozenset(options.split(","))
    if kind == "cpuset":  # it has one controller, which is not among its options
        names |= {"cpuset"}
    return _Mount(_unescape(point), _unescape(shown), _TYPES[kind], names)


# File system type -> version. The old cpuset file system behaves like version 1.
_TYPES = {"cgroup2": 2, "cgroup": 1, "cpuset": 1}


def _unescape(text: str) -> str:
    r"""Decodes octal escapes such as \040, used for space, tab, newline and backslash."""
    return _path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))


def _path(text: str) -> str:
    """Removes NUL bytes, with which paths would raise ValueError instead of OSError."""
    return text.replace("\0", "")
