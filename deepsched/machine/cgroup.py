"""What the process's control group lets it use: CPUs (cpuset), CPU time (quota) and memory; and
what these limits have cost.

Version 2 (Documentation/admin-guide/cgroup-v2.rst), version 1 (Documentation/admin-guide/cgroup-v1/
cpusets.rst, Documentation/scheduler/sched-bwc.rst), the "cpuset" file system from before both, and
any mix of them. A controller lives in one hierarchy; which, and where it is mounted, only the
mount table tells.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deepsched.machine.sysfs import CpuSet, read_cpu_list, read_int, read_text


class View(enum.Enum):
    """How much of a controller's hierarchy the mounts show. A group is limited by those above."""

    nothing = enum.auto()
    """No mount shows the process's own group."""
    part = enum.auto()
    """Its own and some above, not up to the top: what a container sees."""
    whole = enum.auto()
    """Its own and all above."""
    no_cgroups = enum.auto()
    """The kernel has no control groups."""


def view(root: Path, controller: str) -> View:
    """What the limits read for this controller ("cpu", "cpuset", "memory") can be based on."""
    kinds = read_text(root / "proc/filesystems")
    if kinds and not _TYPES.keys() & set(kinds.split()):
        return View.no_cgroups
    groups, version = _read_groups(root, controller), _read_version(root, controller)
    found = View.nothing
    for mount in _read_mounts(root):
        if mount.version == version and (version == 2 or controller in mount.options):
            top, own = root / mount.point.lstrip("/"), _place(mount, groups[version])
            if own is not None and (top / own).is_dir():
                if mount.root == "/" and not _is_below_the_top(top, version):
                    return View.whole
                found = View.part
    return found


def _read_version(root: Path, controller: str) -> int:
    """The version of the hierarchy that the controller is in: 2 unless it is named for one of 1."""
    if any(controller in mount.options for mount in _read_mounts(root) if mount.version == 1):
        return 1
    lines = (line.split(":") for line in (read_text(root / "proc/self/cgroup") or "").splitlines())
    named = (controller in words[1].split(",") for words in lines if len(words) > 1)
    return 1 if any(named) else 2


def _is_below_the_top(folder: Path, version: int) -> bool:
    """Whether a mount's root is a group with others above, as a cgroup namespace hides them.

    All groups but the top one of version 2 have cgroup.events; none but the top one of version 1
    has release_agent (a capture may lack both: then nothing says that there are more).
    """
    if version == 2:
        return (folder / "cgroup.events").exists()
    return (folder / "cgroup.procs").exists() and not (folder / "release_agent").exists()


def allowed_cpus(root: Path) -> CpuSet | None:
    """The CPUs that the process's cpuset allows, offline ones perhaps among them.

    Args:
        root: where the machine's /proc lies; mount points are taken as below it.

    Returns:
        The set of the nearest group, from the process's own upwards, that has one; None if none
        has: the process may use every CPU.
    """
    for mount, folder in _group_folders(root, "cpuset"):
        cpus = read_cpu_list(folder, *_cpuset_files(mount))
        if cpus:
            return cpus
    return None


def _cpuset_files(mount: _Mount) -> tuple[str, ...]:
    """The files that say which CPUs a group has, the one that counts first."""
    if mount.version == 2:  # what is configured may be empty ("as the parent"): the effective set
        return ("cpuset.cpus.effective",)
    names = ("cpus", "effective_cpus")  # without prefix: mounted with "noprefix", or as "cpuset"
    if "cpuset_v2_mode" in mount.options:
        names = ("effective_cpus", "cpus")
    return tuple(f"{prefix}{name}" for name in names for prefix in ("cpuset.", ""))


def cpu_quota(root: Path) -> float | None:
    """How much CPU time the process may take, in cores; None if there is no limit.

    A group may take no more than any group above it, so this is the smallest limit on the way from
    the process's own group to the root.
    """
    quotas = [_quota(folder) for _, folder in _group_folders(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """Quota over period, both in microseconds."""
    words = (read_text(folder / "cpu.max") or "").split()  # version 2: "max 100000" is no limit
    if len(words) != 2:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 1: -1 is no limit
        words = [read_text(folder / name) or "" for name in names]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        return None
    return int(words[0]) / int(words[1])


class Throttling(NamedTuple):
    """What a group's CPU quota has cost since the group was made."""

    seconds: float
    """For how long it was kept from running; summed over CPUs, so it may outrun the clock."""
    num_throttled: int
    """In how many periods the quota was used up."""
    num_periods: int
    """How many periods it ran in."""


def throttling(root: Path) -> tuple[Throttling, ...]:
    """The process's own group first, then those above it, whose quotas stop it as well.

    Groups of which the kernel does not tell are left out.
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
    """Lines of a name and a number."""
    pairs = (line.split(" ", 1) for line in (text or "").splitlines() if " " in line)
    return {name: int(number) for name, number in pairs if number.isdecimal()}


def memory_limit(root: Path) -> int | None:
    """How many bytes the process and its group may hold; None if there is no limit.

    The smallest limit on the way from the process's own group to the root.
    """
    limits = [_memory_limit(folder) for _, folder in _group_folders(root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_high(root: Path) -> int | None:
    """From how many bytes on the kernel slows the process and its group down; None: from none on.

    Version 2 alone has it. The smallest on the way from the process's own group to the root.
    """
    limits = [read_int(folder / "memory.high") for _, folder in _group_folders(root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


class MemoryStall(NamedTuple):
    """What a group's want of memory has cost since the group was made."""

    seconds: float
    """For how long one of its threads or more stood still."""
    busy_seconds: float
    """For how long it ran; summed over CPUs."""

    @property
    def share(self) -> float:
        """Of the time that it ran or stood still."""
        return self.seconds / max(1e-6, self.seconds + self.busy_seconds)


def memory_stall(root: Path) -> MemoryStall | None:
    """Of the nearest group that memory.high slows down (Documentation/accounting/psi.rst).

    None: there is none, or the kernel does not tell.
    """
    for _, folder in _group_folders(root, "memory"):
        if read_int(folder / "memory.high") is not None:
            text = read_text(folder / "memory.pressure") or ""
            match = re.search(r"^some .*total=([0-9]+)$", text, re.MULTILINE)
            ran = _numbers(read_text(folder / "cpu.stat")).get("usage_usec")
            if match and ran is not None:
                return MemoryStall(int(match[1]) / 1e6, ran / 1e6)
    return None


def oom_kills(root: Path) -> int | None:
    """How many processes were killed because the memory limit was reached.

    In the nearest group that has a limit, and in those below it; None: there is none, or the
    kernel does not tell.
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
"""Version 1 has no word for "no limit": it shows the largest multiple of a page in 63 bits."""


def _group_folders(root: Path, controller: str) -> Iterator[tuple[_Mount, Path]]:
    """The folders of the process's group and of those above it, nearest first, of each mount."""
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
    """The group's folder and its ancestors up to the mount point; missing ones do no harm.

    Inside a container the mount shows only a part of the hierarchy, which starts at `mount.root`.
    A group outside of that part (or one that a cgroup namespace shows as "/../name") cannot be
    seen; the mount point is then the nearest to it that can.
    """
    top = root / mount.point.lstrip("/")
    place = _place(mount, group) or PurePosixPath()
    for folder in (place, *place.parents):
        yield top / folder


def _place(mount: _Mount, group: str) -> PurePosixPath | None:
    """Where the mount shows the group, from the mount point on; None where it does not."""
    path = PurePosixPath(group)
    inside = path.is_relative_to(mount.root) and ".." not in path.parts
    return path.relative_to(mount.root) if inside else None


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    root: str
    """Which group the mount point shows."""
    version: int
    options: frozenset[str]
    """Version 1: the controllers are among them."""


def _read_mounts(root: Path) -> list[_Mount]:
    """The mounts of control groups: Documentation/filesystems/proc.rst, 3.5 for mountinfo."""
    mounts = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        # One space between two words: a mount's source may be empty.
        words, _, rest = (part.split(" ") for part in line.partition(" - "))
        if len(words) > 4 and len(rest) > 2 and rest[0] in _TYPES:
            mounts.append(_mount(words[4], words[3], rest[0], rest[2]))
    if not mounts:  # a capture may have the short table only
        for line in (read_text(root / "proc/mounts") or "").splitlines():
            words = line.split(" ")
            if len(words) > 3 and words[2] in _TYPES:
                mounts.append(_mount(words[1], "/", words[2], words[3]))
    return mounts


def _mount(point: str, shown: str, kind: str, options: str) -> _Mount:
    names = frozenset(options.split(","))
    if kind == "cpuset":  # one controller, and no option that says so
        names |= {"cpuset"}
    return _Mount(_unescape(point), _unescape(shown), _TYPES[kind], names)


# Type of file system -> version. The old cpuset file system behaves as version 1.
_TYPES = {"cgroup2": 2, "cgroup": 1, "cpuset": 1}


def _unescape(text: str) -> str:
    r"""Space, tab, newline and backslash stand as \040 and the like."""
    return _path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))


def _path(text: str) -> str:
    """What may be asked of the OS: paths with a zero byte raise ValueError, not OSError."""
    return text.replace("\0", "")
