"""Run inside an emulated machine: python -m tests.machines.checks NAME

Prints "CHECK: ok" or "CHECK: WRONG: why" for each check of the case of that name. What is right is
compared with the kernel's own words: /proc, /sys, and hwloc's reading of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bench.numa
from deepsched import Context, Engine, Topology, check_hardware, partition
from deepsched.machine.sysfs import format_cpu_list
from tests.machines.catalog import CASES, Case
from tests.support import models
from tests.support.cgroups import limits
from tests.support.threads import in_threads

_PATIENCE_S = 120


def _lists(topology: Topology, level: str) -> tuple[str, ...]:
    """The CPUs of each of a topology's groups."""
    groups: dict[object, list[int]] = {}
    for core in topology.cores:
        groups.setdefault(getattr(core, level), []).extend(core.cpus)
    return tuple(format_cpu_list(cpus) for cpus in groups.values())


def _equal(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: {found}, not {wanted}")


def _wait_until(what: str, condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > ends:
            raise AssertionError(f"waited in vain until {what}")
        time.sleep(0.05)


# --- Structure ----------------------------------------------------------------------------------


def topology(case: Case) -> None:
    found = Topology.detect()
    _equal("cores", len(found.cores), case.cores)
    _equal("packages", _lists(found, "package"), case.packages)
    _equal("NUMA nodes", _lists(found, "numa_node"), case.nodes)
    _equal("L3 caches", _lists(found, "l3"), case.caches)


def lstopo(case: Case) -> None:
    """hwloc's groups are ours."""
    command = ["lstopo-no-graphics", "--of", "xml", "-"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    root = xml.etree.ElementTree.fromstring(listed)
    found = Topology.detect()
    for kind, ours in (
        ("Package", set(_lists(found, "package"))),
        ("NUMANode", set(_lists(found, "numa_node"))),
        ("L3Cache", set(_lists(found, "l3"))),
        ("Core", {format_cpu_list(core.cpus) for core in found.cores}),
    ):
        sets = [node.get("cpuset") for node in root.iter("object") if node.get("type") == kind]
        _equal(kind, ours, {_cpus_of(mask) for mask in sets} - {""})


def _cpus_of(mask: str) -> str:
    """hwloc writes words of 32 bits, the highest first."""
    words = mask.split(",")
    bits = sum(int(word or "0", 16) << 32 * place for place, word in enumerate(reversed(words)))
    return format_cpu_list(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def partition_(case: Case) -> None:
    machine = Topology.detect()
    streams = partition(machine).streams
    _equal("default streams", tuple(format_cpu_list(it.cpus) for it in streams), case.streams)
    for num_streams, wanted in case.warnings.items():
        warnings = partition(machine, num_streams=num_streams).warnings
        found = {str(it.kind): format_cpu_list(it.streams) for it in warnings}
        _equal(f"warnings of {num_streams} streams", found, wanted)


def doctor(case: Case) -> None:
    diagnosis = check_hardware()
    for name, wanted in case.doctor.items():
        if wanted not in diagnosis[name].found:
            raise AssertionError(f"{name}: {diagnosis[name].found!r}, not {wanted!r}")
    for check in diagnosis.checks:
        if bool(check.advice) != (check.status == "warn"):
            raise AssertionError(f"{check.name}: {check.status} with advice {check.advice!r}")


# --- Serving ------------------------------------------------------------------------------------


@contextmanager
def _engine(scheduler: str, num_streams: int | None = None) -> Iterator[Engine]:
    """Threads that do not spin: emulated CPUs are many more than real ones."""
    with Context(scheduler=scheduler, num_streams=num_streams, spin="power") as context:
        yield Engine(models.gemm(), 4, context=context)


def _two_a_node(case: Case) -> int:
    return min(case.cores, 2 * len(case.nodes))


def _inputs() -> list[np.ndarray]:
    return [np.ones((4, 256), np.float32)]


def _threads() -> dict[str, tuple[str, int]]:
    """By name: the CPUs that the thread may use, and the one that it was on last."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        status = dict(
            line.split(":\t", 1)
            for line in (thread / "status").read_text().splitlines()
            if ":\t" in line
        )
        stat = (thread / "stat").read_text().rpartition(") ")[2].split()
        found[status["Name"]] = status["Cpus_allowed_list"], int(stat[36])
    return found


def _check_pins(engine: Engine) -> None:
    """A worker or a thread of ONNX Runtime for each CPU of each stream, on that CPU alone."""
    found = _threads()
    prefix = min(name for name in found if name.endswith("-s0")).removesuffix("s0")
    for stream in engine.context.streams:
        names = [f"{prefix}s{stream.index}"]
        names += [f"{names[0]}-op{place}" for place in range(1, len(stream.cpus))]
        for name, cpu in zip(names, stream.cpus, strict=True):
            _equal(f"{name} may use", found[name[:15]], (str(cpu), cpu))


def threads(case: Case) -> None:
    with _engine("multi_stream") as engine:
        while any(stream.done == 0 for stream in engine.stats().streams):
            list(engine.map([_inputs()] * 64))
        _check_pins(engine)


def near_streams(case: Case) -> None:
    """A caller on a node is served by a stream of that node, as long as one is free there."""
    with _engine("multi_stream", _two_a_node(case)) as engine:
        engine.run(_inputs())
        streams = engine.context.streams
        for stream in streams:

            def call(cpu: int = stream.cpus[0]) -> None:
                os.sched_setaffinity(0, {cpu})
                for _ in range(5):
                    engine.run(_inputs())

            with engine.context.trace() as trace:
                in_threads(1, lambda _: call())
            nodes = {streams[record.stream].numa_nodes for record in trace}
            _equal(f"nodes of a caller on CPU {stream.cpus[0]}", nodes, {stream.numa_nodes})


def elastic(case: Case) -> None:
    """While more wait than there are streams, no request runs on a group that spans nodes, unless
    it is one stream."""
    num_streams = _two_a_node(case)
    inputs = [np.ones((4, 1024), np.float32)]
    with (
        Context(scheduler="elastic", num_streams=num_streams, spin="power") as context,
        Engine(models.gemm(size=1024), 4, context=context) as engine,
        context.trace() as trace,
    ):
        for future in [engine.submit(inputs) for _ in range(10 * num_streams)]:
            future.result()
    last_submitted = max(record.submitted_ns for record in trace)
    # What starts later than all streams' next ones was in the queue when it was decided.
    by_start = sorted(trace, key=lambda record: record.started_ns)[: -num_streams - 1]
    crowded = [record for record in by_start if record.started_ns > last_submitted]
    _equal("requests", {record.outcome for record in trace}, {"done"})
    _equal("there are any that others wait behind", bool(crowded), True)
    for record in crowded:
        own = trace.streams[record.stream : record.stream + record.num_streams]
        nodes = {node for stream in own for node in stream.numa_nodes}
        if len(own) > 1:
            _equal("nodes of a request in a crowd", len(nodes), 1)


def weights(case: Case) -> None:
    _equal("exit status of bench.numa", bench.numa.main(), 0)


# --- CPUs that come and go ----------------------------------------------------------------------


def _serve_through(changes: Iterable[tuple[Path, str, tuple[int, ...]]]) -> None:
    """Requests go on while files are written to: the file, what to write, the CPUs that this takes
    from the engine."""
    end = threading.Event()
    failures = []
    with _engine("multi_stream") as engine:
        wanted = engine.run(_inputs())[0].tobytes()

        def serve() -> None:
            while not end.is_set():
                try:
                    _equal("outputs", engine.run(_inputs())[0].tobytes() == wanted, True)
                except BaseException as error:
                    failures.append(error)
                    return

        callers = [threading.Thread(target=serve) for _ in range(2 * engine.num_streams)]
        for caller in callers:
            caller.start()
        try:
            for file, text, lost in changes:
                file.write_text(text)
                _wait_until(f"{lost} are lost", lambda lost=lost: engine.stats().lost_cpus == lost)
                done = engine.stats().done
                _wait_until("requests go on", lambda done=done: engine.stats().done > done + 100)
                _equal("doctor", str(check_hardware()["streams"].status), "warn" if lost else "ok")
                _equal("lost ones in use", set(lost) & set(Topology.detect().cpus), set())
            _check_pins(engine)
        finally:
            end.set()
            for caller in callers:
                caller.join()
    _equal("failures", failures, [])


def offline(case: Case) -> None:
    """The last CPU is taken offline, and comes back."""
    cpu = max(Topology.detect().cpus)
    switch = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    _serve_through([(switch, "0", (cpu,)), (switch, "1", ())])


def changing_cpuset(case: Case) -> None:
    """A control group's cpuset shrinks, and grows."""
    root = Path("/sys/fs/cgroup")
    (root / "cgroup.subtree_control").write_text("+cpuset")
    group = root / "changing"
    group.mkdir()
    (group / "cpuset.cpus").write_text("0-3")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        cpus = group / "cpuset.cpus"
        _serve_through(
            [(cpus, "0-1", (2, 3)), (cpus, "0-3", ()), (cpus, "1-3", (0,)), (cpus, "0-3", ())]
        )
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _python(code: str, **limits_: object) -> list[str]:
    with limits(**limits_) as group:
        done = group.run([sys.executable, "-c", code], timeout=_PATIENCE_S)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.splitlines()


_TELL = """
from deepsched import Topology, check_hardware, partition
machine = Topology.detect()
print(",".join(map(str, machine.cpus)), machine.cpu_quota, len(partition(machine).streams))
diagnosis = check_hardware()
print(diagnosis["cpuset"].found)
print(diagnosis["cpu_quota"].found)
"""


def cpuset(case: Case) -> None:
    facts, told, _ = _python(_TELL, cpuset="1-2")
    _equal("CPUs, quota, streams", facts, "1,2 None 2")
    _equal("doctor", told, "the cgroup allows 2 CPUs (1-2) of the 4 online")


def quota(case: Case) -> None:
    facts, _, told = _python(_TELL, cpus=(200_000, 100_000))
    _equal("CPUs, quota, streams", facts, "0,1,2,3 2.0 1")
    _equal("doctor", told.partition(";")[0], "2 cores of CPU time for 4 usable cores")


CHECKS = {
    "partition": partition_,
    **{
        check.__name__: check
        for check in (
            topology,
            lstopo,
            doctor,
            threads,
            near_streams,
            elastic,
            weights,
            offline,
            cpuset,
            quota,
            changing_cpuset,
        )
    },
}


def main(name: str) -> int:
    case = CASES[name]
    is_right = True
    for check in case.checks:
        try:
            CHECKS[check](case)
        except BaseException as error:
            traceback.print_exc()
            print(f"{check}: WRONG: {error}", flush=True)
            is_right = False
        else:
            print(f"{check}: ok", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
