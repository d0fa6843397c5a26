"""The structure of the machine: SMT, kinds of core, NUMA nodes."""

from __future__ import annotations

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host
from deepsched.formatting import counted
from deepsched.machine.partition import partition
from deepsched.machine.sysfs import decimal, format_cpu_list
from deepsched.machine.topology import Core, distinct


def smt(host: Host) -> Check:
    """Whether the process has all hardware threads of its cores."""
    name = "smt"
    threads = max(len(core.cpus) for core in host.online)
    usable = frozenset(host.topology.cpus)
    others = sorted(host.whole_cores(usable) - usable)
    halves = [core for core in host.online if not set(core.cpus).isdisjoint(others)]
    num_cores = len(host.topology.cores)
    data = {
        "threads_per_core": threads,
        "usable_cores": num_cores,
        "usable_cpus": len(usable),
        "sibling_cpus_left_out": others,
    }
    if threads == 1:
        hidden = "A virtual machine may hide that two of its CPUs share a core; core_latency tells."
        return ok(
            name,
            "off or not present: each CPU is a core",
            hidden if host.is_virtual else "",
            **data,
        )
    if halves:
        return warn(
            name,
            f"on; on {len(halves)} of the {num_cores} usable cores the process may use only some "
            "of the threads",
            f"Whatever runs on CPUs {format_cpu_list(others)} shares the execution units and "
            "private caches of these cores.",
            "Put whole cores into the mask and the cpuset: docker run --cpuset-cpus="
            f"{format_cpu_list([*usable, *others])}, or taskset -c with the same list.",
            **data,
        )
    return ok(
        name,
        f"on; the {len(usable)} usable CPUs make {counted(num_cores, 'core')}",
        "deepsched uses one thread of each core.",
        **data,
    )


def core_kinds(host: Host) -> Check:
    """Whether streams mix fast and slow cores."""
    name = "core_kinds"
    kinds: dict[int, list[Core]] = {}
    for core in sorted(host.used_cores, key=lambda core: -core.kind):
        kinds.setdefault(core.kind, []).append(core)
    data = {"cpus_by_kind": {str(kind): _cpus(cores) for kind, cores in kinds.items()}}
    if len(kinds) == 1:
        return ok(name, "all cores that deepsched uses are of one kind", **data)
    parts = [f"{len(cores)} (CPUs {format_cpu_list(_cpus(cores))})" for cores in kinds.values()]
    best = next(iter(kinds.values()))
    return warn(
        name,
        f"{len(kinds)} kinds of core, the most capable first: {', '.join(parts)}",
        "An operator is split into equal parts, one per core of the stream, and finishes with the "
        "slowest core.",
        f"{_only(host, best)}num_streams so that no stream has both: deepsched topology "
        "--num-streams N shows it.",
        **data,
    )


def _only(host: Host, best: list[Core]) -> str:
    """Advice to use these alone; not possible across packages, which partition fills first."""
    streams = partition(host.topology, num_cores=len(best)).streams
    if {core for stream in streams for core in stream.cores} != set(best):
        return "Choose "
    return f"num_cores={len(best)} uses the most capable ones alone; or choose "


def _cpus(cores: list[Core]) -> list[int]:
    return sorted(cpu for core in cores for cpu in core.cpus)


def numa(host: Host) -> Check:
    """The NUMA nodes of the cores in use."""
    name = "numa"
    nodes = sorted(distinct(core.numa_node for core in host.online))
    used = sorted(distinct(core.numa_node for core in host.used_cores))
    data = {"nodes": nodes, "used_nodes": used}
    if not used:
        return unknown(name, "the machine does not report the NUMA nodes of these CPUs", **data)
    if len(used) == 1:
        of = f" of {len(nodes)}" if len(nodes) > 1 else ""
        return ok(name, f"all cores that deepsched uses are in node {used[0]}{of}", **data)
    return ok(
        name,
        f"the cores that deepsched uses span {len(used)} nodes ({format_cpu_list(used)})",
        "A stream that spans nodes, as single_stream's does, reads its weights from each in turn. "
        "multi_stream keeps a copy of the weights on each node that has streams.",
        **data,
    )


def numa_balancing(host: Host) -> Check:
    """Whether the kernel migrates memory that is already well placed."""
    name = "numa_balancing"
    text = host.read_text("proc/sys/kernel/numa_balancing")
    data = {"value": decimal(text or "")}
    if len(distinct(core.numa_node for core in host.online)) < 2:
        return ok(name, "one NUMA node: nothing to balance", **data)
    if data["value"] is None:
        return unknown(name, "no kernel.numa_balancing", **data)
    if not data["value"] & 1:  # 2 alone: only between memory tiers
        return ok(name, "off between CPU nodes", **data)
    return warn(
        name,
        f"on (kernel.numa_balancing = {text})",
        "The kernel unmaps pages periodically, to learn from the page faults who uses them. "
        "Threads and weights are bound to their nodes already, so the faults cost time and gain "
        "little.",
        "sysctl -w kernel.numa_balancing=0, on the host, if it runs only such programs.",
        **data,
    )


def memory_nodes(host: Host) -> Check:
    """Whether memory may be allocated on the nodes of the cores in use."""
    name = "memory_nodes"
    allowed = host.memory_nodes
    if allowed is None:
        return unknown(name, "proc/self/status does not report the allowed memory nodes")
    nodes = frozenset(distinct(core.numa_node for core in host.used_cores))
    nodes &= host.read_list("sys/devices/system/node/has_memory") or nodes
    data = {"allowed_nodes": sorted(allowed), "used_nodes": sorted(nodes)}
    forbidden = nodes - allowed
    if not forbidden:
        return ok(name, "memory may be allocated on every node that has cores in use", **data)
    return warn(
        name,
        f"memory may be allocated on nodes {format_cpu_list(allowed)}; cores in use are also on "
        f"nodes {format_cpu_list(forbidden)}",
        "These cores reach all their memory on another node: higher latency, lower bandwidth.",
        "Bind CPUs and memory to the same nodes: docker run --cpuset-mems="
        f"{format_cpu_list(nodes)}, or numactl --cpunodebind and --membind with the same nodes.",
        **data,
    )
