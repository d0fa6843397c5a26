"""What a process's control groups allow: CPUs (cpuset) and CPU time (quota).

Read as Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cpusets.rst and
scheduler/sched-bwc.rst of the kernel describe them; `root` may be a captured tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deepsched.sysfs import parse_cpulist, read_text


class _Mount(NamedTuple):
    point: str
    fstype: str
    options: frozenset[str]
    root: str
    """Which group the mount point shows: not "/" in a container that sees its own subtree only."""


def allowed_cpus(root: Path) -> frozenset[int] | None:
    """The CPUs of the process's cpuset; None where no cpuset is in force."""
    names = (
        "cpuset.cpus.effective",  # v2
        "cpuset.cpus",  # v1; may name offline CPUs
        "cpus",  # v1 mounted with noprefix, as the old cpuset file system is
    )
    for folders in _hierarchies(root, "cpuset"):
        for folder in folders:
            for name in names:
                text = read_text(folder / name)
                if text:  # an empty v2 cpuset means the parent's
                    return parse_cpulist(text)
    return None


def cpu_quota(root: Path) -> float | None:
    """How many CPUs' worth of time the process may use; None where it is not limited.

    Every group on the way up limits those below it, so the smallest counts.
    """
    limits = [
        limit
        for folders in _hierarchies(root, "cpu")
        for folder in folders
        if (limit := _limit_of(folder)) is not None
    ]
    return min(limits, default=None)


def _limit_of(folder: Path) -> float | None:
    text = read_text(folder / "cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota = read_text(folder / "cpu.cfs_quota_us") or ""
        period = read_text(folder / "cpu.cfs_period_us") or ""
    if not quota.isdigit():  # "max", -1 or nothing
        return None
    microseconds = int(period) if period.isdigit() and int(period) else 100_000
    return int(quota) / microseconds


def _hierarchies(root: Path, controller: str) -> Iterator[list[Path]]:
    """For each mounted hierarchy that may have `controller`: the process's group and those above.

    A controller is bound to one hierarchy, v1 before v2: the other one has no files of it.
    """
    groups = _groups_of_process(root)
    mounts = _mounts(root)
    for mount in mounts:
        if mount.fstype == "cgroup" and controller in mount.options:
            yield _way_up(root, mount, groups.get(controller))
    for mount in mounts:
        if mount.fstype == "cgroup2":
            yield _way_up(root, mount, groups.get("", groups.get("cpuset")))
    for mount in mounts:
        if mount.fstype == "cpuset" and controller == "cpuset":
            yield _way_up(root, mount, groups.get("cpuset"))


def _groups_of_process(root: Path) -> dict[str, str]:
    """The process's group by controller; "" is the v2 hierarchy's."""
    groups = {}
    cpuset = read_text(root / "proc/self/cpuset")
    if cpuset:
        groups["cpuset"] = cpuset
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _mounts(root: Path) -> list[_Mount]:
    """Of cgroup file systems. mountinfo tells more than mounts, and is absent in old captures."""
    mounts = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        # 36 35 98:0 /root /point options [tags...] - fstype source super_options
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 6 and len(tail) >= 3:
            options = frozenset(tail[2].split(","))
            mounts.append(_Mount(_unescape(fields[4]), tail[0], options, _unescape(fields[3])))
    if not mounts:
        for line in (read_text(root / "proc/mounts") or "").splitlines():
            fields = line.split()
            if len(fields) >= 4:
                options = frozenset(fields[3].split(","))
                mounts.append(_Mount(_unescape(fields[1]), fields[2], options, "/"))
    return [mount for mount in mounts if mount.fstype in ("cgroup", "cgroup2", "cpuset")]


def _unescape(text: str) -> str:
    r"""Blanks are written as \040 in /proc/mounts."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _way_up(root: Path, mount: _Mount, group: str | None) -> list[Path]:
    """The folders from the process's group up to the mount point, those that exist.

    A group that is not below the mount (a cgroup namespace, a bind mount) leaves the mount point,
    which then shows the container's own group.
    """
    top = root / mount.point.lstrip("/")
    group = group or "/"
    if mount.root != "/" and (group + "/").startswith(mount.root.rstrip("/") + "/"):
        group = group[len(mount.root.rstrip("/")) :]
    parts = [part for part in group.split("/") if part]
    if ".." in parts:
        parts = []
    folders = [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]
