"""CPU contention from other processes."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched.machine.contention import (
    ContentionMonitor,
    contention_notes,
    least_worst,
    read_cpu_times,
    read_threads,
)
from tests.support.neighbours import busy_neighbours

TICK = 1 / os.sysconf("SC_CLK_TCK")


def write_stat(root, *cpus):
    lines = ["cpu  " + " ".join(["9"] * 10), *(f"cpu{n} {words}" for n, words in cpus), "intr 1 2"]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text("\n".join(lines))


def write_thread(root, thread, seconds, cpu):
    ticks = round(seconds / TICK)
    fields = ["S", *["0"] * 10, str(ticks), "0", *["0"] * 23, str(cpu), *["0"] * 13]
    folder = root / f"proc/self/task/{thread}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"{thread} (a) b) {' '.join(fields)}")


class FakeMachine:
    """Busy times and threads as a test says, on a clock that it moves."""

    def __init__(self, root, monkeypatch, num_cpus, virtual=False):
        self.root, self.cpus = root, range(num_cpus)
        self.now = self.own = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.process_time", lambda: self.own)
        if virtual:
            (root / "proc").mkdir()
            (root / "proc/cpuinfo").write_text("processor : 0\nflags : fpu hypervisor\n")
        self.pass_time({})

    def pass_time(self, busy, threads=(), steal=0.0):
        """A second; `busy`: seconds since boot by CPU; `threads`: (id, seconds, CPU)."""
        write_stat(
            self.root,
            *(
                (cpu, f"{round(busy.get(cpu, 0) / TICK)} 0 0 7 7 0 0 {round(steal / TICK)}")
                for cpu in self.cpus
            ),
        )
        for thread in threads:
            write_thread(self.root, *thread)
        self.now += 1.0


def test_busy_time_excludes_idle_and_iowait(tmp_path):
    write_stat(tmp_path, (0, "1 2 4 8 16 32 64 128 0 0"), (1, "1 0 0 5 5 0 0 0 0 0"))
    found = read_cpu_times(tmp_path, {0, 1})
    assert found[0].busy == pytest.approx((1 + 2 + 4 + 32 + 64 + 128) * TICK)
    assert found[0].steal == pytest.approx(128 * TICK)
    assert found[1].busy == pytest.approx(TICK)
    assert read_cpu_times(tmp_path, {0, 2}) is None  # the kernel does not count CPU 2
    assert read_cpu_times(tmp_path / "none", {0}) is None


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c"), max_size=80))
def test_a_malformed_proc_stat_is_no_error(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("odd")
    (root / "proc").mkdir()
    (root / "proc/stat").write_text("cpu0 " + text)
    found = read_cpu_times(root, {0})
    assert found is None or found[0].busy >= 0


def test_threads_are_found_with_their_time_and_cpu():
    spun = threading.Event()
    threading.Thread(target=lambda: [sum(range(10**6)) for _ in range(20)] and spun.set()).start()
    assert spun.wait(60)
    found = read_threads(ContentionMonitor()._root)
    assert threading.get_native_id() in found
    assert all(seconds >= 0 and cpu in range(os.cpu_count()) for seconds, cpu in found.values())


def test_one_cpu_of_32_that_is_taken_whole_shows(tmp_path, monkeypatch):
    """A stream of 32 cores; another process takes half of CPU 5's time, and gets it."""
    machine = FakeMachine(tmp_path, monkeypatch, 32)
    machine.pass_time({}, [(cpu + 1, 0.0, cpu) for cpu in machine.cpus])
    monitor = ContentionMonitor(machine.cpus, tmp_path)
    own = {cpu: 0.5 if cpu == 5 else 1.0 for cpu in machine.cpus}
    machine.own = sum(own.values())
    machine.pass_time(
        dict.fromkeys(machine.cpus, 1.0), [(cpu + 1, own[cpu], cpu) for cpu in machine.cpus]
    )
    assert monitor.others_share() == pytest.approx(0.5, abs=0.021)


def test_work_beside_the_cpus_in_use_does_not_count(tmp_path, monkeypatch):
    machine = FakeMachine(tmp_path, monkeypatch, 4)
    monitor = ContentionMonitor({0, 1}, tmp_path)
    machine.pass_time({3: 1.0})
    assert monitor.others_share() == 0.0


def test_threads_that_move_or_end_raise_no_alarm(tmp_path, monkeypatch):
    """One thread of this process wanders over both CPUs; another one ends unseen."""
    machine = FakeMachine(tmp_path, monkeypatch, 2)
    machine.pass_time({}, [(1, 0.0, 0)])
    monitor = ContentionMonitor({0, 1}, tmp_path)
    for second in range(1, 11):
        machine.own = 1.5 * second
        machine.pass_time({0: 0.5 * second, 1: 1.0 * second}, [(1, 1.0 * second, second % 2)])
        monitor.sample()
    assert monitor.others_share() == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.data(),
)
def test_the_bound_is_never_above_the_truth(cpus, data):
    """`cpus`: what others used, and this process; some of the latter is not located."""
    hidden = [data.draw(st.floats(0, own)) for _, own in cpus]
    unexplained = {cpu: others + hidden[cpu] for cpu, (others, _) in enumerate(cpus)}
    bound = least_worst(unexplained, sum(hidden))
    assert bound <= max(others for others, _ in cpus) + 1e-9
    if not any(hidden):
        assert bound == max(others for others, _ in cpus)


def test_steal_time_counts_and_its_absence_is_told(tmp_path, monkeypatch):
    machine = FakeMachine(tmp_path, monkeypatch, 2, virtual=True)
    monitor = ContentionMonitor({0, 1}, tmp_path)
    machine.pass_time({})
    assert (monitor.others_share(), monitor.steal_share()) == (0.0, None)
    (note,) = contention_notes(monitor.others_share(), monitor.steal_share())
    assert "never counted steal time" in note
    machine.pass_time({}, steal=1.0)
    assert monitor.steal_share() == pytest.approx(0.5)
    assert monitor.others_share() == pytest.approx(0.5, abs=0.02)


def test_a_real_machine_without_steal_time_has_none(tmp_path, monkeypatch):
    machine = FakeMachine(tmp_path, monkeypatch, 1)
    monitor = ContentionMonitor({0}, tmp_path)
    machine.pass_time({})
    assert monitor.steal_share() == 0.0
    assert contention_notes(0.0, 0.0) == []


def test_sampling_takes_little_of_the_time(monkeypatch):
    """Each look at the clock takes a millisecond, and a sample looks twice."""
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock) / 1000)
    sampled = []
    monkeypatch.setattr(
        "deepsched.machine.contention.read_threads", lambda root: sampled.append(1) or {}
    )
    monitor = ContentionMonitor()
    for _ in range(1000):
        monitor.sample()
    assert 5 < len(sampled) < 15


def test_another_busy_process_is_seen():
    """It has a thread on each CPU, and we one: on the worst CPU it gets half of the time at least,
    whatever else runs."""
    cpus = sorted(os.sched_getaffinity(0))
    if read_cpu_times(Path("/"), cpus) is None:
        pytest.skip("this machine does not count busy time for each CPU")
    with busy_neighbours():
        monitor = ContentionMonitor()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            monitor.sample()
        assert monitor.others_share() > 0.25
