"""Limits on the process (CPUs, CPU time, memory), and what they have cost so far."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from typing import Any

from deepsched.context import open_contexts
from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host
from deepsched.doctor.pools import BINDING_VARIABLES
from deepsched.formatting import counted
from deepsched.machine import cgroup
from deepsched.machine.partition import partition
from deepsched.machine.sysfs import CpuSet, decimal, format_cpu_list
from deepsched.machine.topology import Topology, distinct


def affinity(host: Host) -> Check:
    """Whether the affinity mask leaves out CPUs that the cgroup allows."""
    name = "affinity"
    if host.affinity is None:
        return unknown(name, NOT_LOCAL)
    allowed = host.online_cpus if host.cpuset is None else host.online_cpus & host.cpuset
    mask, left_out = host.affinity & allowed, allowed - host.affinity
    data = {"cpus": sorted(mask), "left_out_cpus": sorted(left_out)}
    if not left_out:
        return ok(name, f"all {len(mask)} usable CPUs ({format_cpu_list(mask)})", **data)
    found = (
        f"{len(mask)} of the {len(allowed)} CPUs that are online and in the cpuset "
        f"({format_cpu_list(mask)} of {format_cpu_list(allowed)})"
    )
    if left_out <= host.isolated:
        return ok(
            name,
            f"{found}; the others are isolated",
            "The kernel runs nothing on isolated CPUs unless asked to: taskset -c "
            f"{format_cpu_list(left_out)} COMMAND uses them.",
            **data,
        )
    if _follows_the_machine(host, mask, allowed):
        return ok(name, f"{found}: whole NUMA nodes, or kinds of core", **data)
    wider = _wider(host, allowed)
    if wider <= mask:
        return ok(name, f"{found}: adding the others would gain nothing", **data)
    return warn(
        name,
        found,
        "deepsched makes its streams only of the CPUs in the mask.",
        "If that is not intended, look for taskset, numactl, systemd's CPUAffinity= and "
        f"--cpuset-cpus{_binding(host)}; taskset -acp {format_cpu_list(wider)} PID widens the mask "
        "of a running process; do so before it makes its first engine.",
        **data,
    )


def _follows_the_machine(host: Host, mask: frozenset[int], allowed: frozenset[int]) -> bool:
    """Whether the mask takes whole NUMA nodes, or whole kinds of core: that is intended."""
    for level in ("numa_node", "kind"):
        groups: dict[int | None, set[int]] = {}
        for core in host.online:
            groups.setdefault(getattr(core, level), set()).update(allowed & set(core.cpus))
        if all(group <= mask or group.isdisjoint(mask) for group in groups.values()):
            return True
    return False


def _wider(host: Host, allowed: CpuSet) -> CpuSet:
    """The CPUs that a wider mask should have; the mask's own if it has enough.

    No more cores than the quota has time for, and none that another check would warn of: of a kind
    that the mask has not, in a node that memory may not come from, or with a part of the core
    outside of the cpuset.
    """
    mask = frozenset(host.topology.cpus)
    kinds = {core.kind for core in host.topology.cores}
    own_nodes = {core.numa_node for core in host.topology.cores}
    cores = []
    for core in host.online:
        cpus = (host.whole_cores(core.cpus) & allowed) - (host.isolated - mask)
        is_fit = (
            core.kind in kinds
            and (host.memory_nodes is None or core.numa_node in host.memory_nodes | own_nodes)
            and cpus == host.whole_cores(cpus)
        )
        if cpus and (is_fit or not mask.isdisjoint(cpus)):
            cores.append(replace(core, cpus=tuple(sorted(cpus))))
    quota = host.topology.cpu_quota
    if quota is not None and quota < len(cores):
        most = max(1, math.floor(quota))
        if len(host.topology.cores) >= most:
            return mask
        streams = partition(Topology(tuple(cores)), num_cores=most).streams
        cores = [core for stream in streams for core in stream.cores]
    return frozenset(cpu for core in cores for cpu in core.cpus)


def _binding(host: Host) -> str:
    """A thread that loads libgomp with OMP_PROC_BIND set is pinned to one CPU from then on."""
    names = [name for name in BINDING_VARIABLES if host.is_local and name in os.environ]
    return f", and at {' and '.join(names)}, which makes OpenMP pin the main thread" * bool(names)


def cpuset(host: Host) -> Check:
    """The CPUs that the cgroup allows."""
    name = "cpuset"
    if host.cpuset is None:
        return _unlimited(
            host, name, "cpuset", "the cgroup allows every CPU that is online", cpus=None
        )
    if host.cpuset >= host.online_cpus:
        return ok(name, "the cgroup allows every CPU that is online", cpus=None)
    allowed = host.cpuset & host.online_cpus
    return ok(
        name,
        f"the cgroup allows {len(allowed)} CPUs ({format_cpu_list(allowed)}) of the "
        f"{len(host.online_cpus)} online",
        cpus=sorted(allowed),
    )


def streams(host: Host) -> Check:
    """Whether the engines of this process may still use the CPUs of their streams."""
    name = "streams"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    contexts = [context for context in open_contexts() if context.pin == "core"]
    lost = sorted({cpu for context in contexts for cpu in context.stats().lost_cpus})
    if not contexts:
        return ok(name, "no engine with pinned threads is open in this process", lost_cpus=lost)
    if not lost:
        return ok(name, "the CPUs of all open engines may be used", lost_cpus=lost)
    return warn(
        name,
        f"open engines have streams on CPUs that may not be used any more: {format_cpu_list(lost)}",
        "The cpuset or the affinity mask has changed since. Requests go on, on the CPUs that are "
        "left, which several threads share.",
        "Open the engines anew: their streams then fit. Or give the CPUs back (docker update "
        "--cpuset-cpus, taskset -acp): they are used again at once, without a new engine.",
        lost_cpus=lost,
    )


def cpu_quota(host: Host) -> Check:
    """Whether the CPU quota is smaller than the number of usable cores."""
    name, quota = "cpu_quota", host.topology.cpu_quota
    num_usable, used = len(host.topology.cores), host.used_cores
    data = {"quota_cores": quota, "usable_cores": num_usable, "used_cores": len(used)}
    if quota is None:
        return _unlimited(host, name, "cpu", "none: the cgroup does not limit CPU time", **data)
    if quota >= num_usable:
        found = f"{quota:g} cores of CPU time for {num_usable} usable cores"
        return _unlimited(host, name, "cpu", found, **data)
    num_used = len(used)
    cpus = format_cpu_list(host.whole_cores(cpu for core in used for cpu in core.cpus))
    meaning = (
        "Pinned threads cannot leave a core that another container keeps busy, and processes that "
        "see the same machine choose the same cores."
    )
    advice = (
        f"Reserve cores: docker run --cpuset-cpus={cpus}, different ones for each container; in "
        "Kubernetes, the static CPU manager policy. If that is not possible: pin='none'."
    )
    if quota != num_used:
        share = quota / num_used
        meaning = (
            f"Work on {counted(num_used, 'core')} uses up the quota after {share:.0%} of each "
            f"period, and is throttled until the next. {meaning}"
        )
        fewer = f", or use num_cores={math.floor(quota)}" if quota >= 1 else ""
        advice = (
            f"Grant whole cores: docker run --cpus={num_used}, Kubernetes limits.cpu: {num_used}"
            f"{fewer}. {advice}"
        )
    found = (
        f"{quota:g} cores of CPU time for {num_usable} usable cores; deepsched uses "
        f"{counted(num_used, 'core')}, pinned to CPUs "
        f"{format_cpu_list(core.cpus[0] for core in used)}"
    )
    return warn(name, found, meaning, advice, **data)


def _unlimited(host: Host, name: str, controller: str, found: str, **data: Any) -> Check:
    """A check that found no limit, as far as cgroups are visible here."""
    match cgroup.view(host.root, controller):
        case cgroup.View.nothing:
            what = f"no mount here shows this process's cgroup for the {controller} controller"
            return unknown(name, what, **data)
        case cgroup.View.no_cgroups:
            return ok(name, "no limit: this kernel has no cgroups", **data)
        case cgroup.View.part:
            return ok(name, f"{found}{_AS_SEEN}", **data)
    return ok(name, found, **data)


_AS_SEEN = ", as far as this container sees"


_HARMLESS = 0.001
"""Share of the periods. The share of requests is larger: idle periods count too, and a request may
span several. Of requests that span ten periods (1 s), one in a hundred is throttled."""


def throttling(host: Host) -> Check:
    """Throttling so far by the CPU quota, or by that of a group above."""
    name = "throttling"
    # If its own group is not visible, what is visible is another one's.
    is_seen = cgroup.view(host.root, "cpu") != cgroup.View.nothing
    groups = cgroup.throttling(host.root) if is_seen else ()
    if not groups and host.topology.cpu_quota is not None:
        return unknown(name, "the cgroup has no cpu.stat that reports it")
    if not groups:
        return _unlimited(host, name, "cpu", "none: there is no CPU quota")
    worst = max(groups, key=lambda group: group.num_throttled / max(1, group.num_periods))
    share = worst.num_throttled / max(1, worst.num_periods)
    data = {"share_of_periods": share, **worst._asdict()}
    if worst.num_throttled == 0:
        return _unlimited(host, name, "cpu", "none since the cgroup was created", **data)
    found = (
        f"in {share:.1%} of its periods ({worst.num_throttled} of {worst.num_periods}), "
        f"{worst.seconds:.1f} s summed over CPUs, since the cgroup was created"
    )
    if share <= _HARMLESS:
        return _unlimited(host, name, "cpu", found, **data)
    return warn(
        name,
        found,
        "Once the quota is used up, all threads of the group stop until the period (0.1 s by "
        "default) ends, and requests take that much longer. The share of requests affected is "
        "larger: idle periods count too, and a long request spans several.",
        "Raise the quota (docker run --cpus, Kubernetes limits.cpu), use fewer cores (num_cores=), "
        "or move other work out of the cgroup; `deepsched benchmark MODEL` reports the throttling "
        "of its own run.",
        **data,
    )


def memory(host: Host) -> Check:
    """The memory available, and whether it ran out."""
    name = "memory"
    limit, kills = cgroup.memory_limit(host.root), cgroup.oom_kills(host.root)
    high, stall = cgroup.memory_high(host.root), cgroup.memory_stall(host.root)
    total = _total_memory(host)
    data = {
        "limit_bytes": limit,
        "high_bytes": high,
        "total_bytes": total,
        "oom_kills": kills,
        "stall_seconds": None if stall is None else stall.seconds,
    }
    if limit is None and total is None:
        return unknown(name, "neither the machine's memory nor a limit is reported", **data)
    machine = "" if total is None else f"{_gib(total)} in the machine"
    bound = _no_limit(host) if limit is high is None else ""
    if limit is not None:
        bound = f"the cgroup's limit is {_gib(limit)}"
    brake = "" if high is None else f"throttled above {_gib(high)} (memory.high)"
    found = "; ".join(filter(None, (machine, bound, brake)))
    troubles = []
    if kills:
        troubles.append(f"processes killed by the OOM killer since the cgroup was created: {kills}")
    if stall is not None and stall.share > _MUCH_STALL:
        troubles.append(
            f"threads stalled on memory pressure for {stall.seconds:.1f} s, against "
            f"{stall.busy_seconds:.1f} s of CPU time"
        )
    if not troubles:
        return ok(name, found, **data)
    return warn(
        name,
        "; ".join([found, *troubles]),
        "All streams share one copy of the weights; activations are per stream.",
        "Raise the limit (docker run --memory, Kubernetes limits.memory, systemd's MemoryHigh=), "
        "or use fewer streams or a smaller batch; engine.memory() shows what each takes.",
        **data,
    )


_MUCH_STALL = 0.01
"""Share of the time that threads ran or stalled."""


def _no_limit(host: Host) -> str:
    """The finding where no limit is set."""
    match cgroup.view(host.root, "memory"):
        case cgroup.View.nothing:
            return "unknown whether a cgroup limits it"
        case cgroup.View.part:
            return f"no cgroup limit{_AS_SEEN}"
    return ""


def _total_memory(host: Host) -> int | None:
    for line in (host.read_text("proc/meminfo") or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "MemTotal:":
            kib = decimal(words[1])
            return None if kib is None else kib << 10
    return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.3g} GiB"


_ROOM_FOR_COPIES = 1 << 30


def shared_memory(host: Host) -> Check:
    """Whether /dev/shm has room for the models kept there."""
    name = "shared_memory"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return unknown(name, f"/dev/shm cannot be read: {error.strerror}")
    found, data = (
        f"{_gib(free)} free of {_gib(total)} in /dev/shm",
        {"total_bytes": total, "free_bytes": free},
    )
    num_nodes = len(distinct(core.numa_node for core in host.used_cores))
    if num_nodes > 1 and free < _ROOM_FOR_COPIES:
        advice = "Find what fills it: du -ah /dev/shm."
        if total < _ROOM_FOR_COPIES:
            advice = (
                "docker run --shm-size=4g; Kubernetes: an emptyDir with medium: Memory at /dev/shm."
            )
        return warn(
            name,
            found,
            "Engines keep copies of a model's weights there for the NUMA nodes that read them; "
            "what does not fit is shared, and read through remote memory.",
            advice,
            **data,
        )
    return ok(
        name,
        found,
        "Models compiled with cache_dir=None are kept there; what does not fit goes to the folder "
        "for temporary files.",
        **data,
    )
