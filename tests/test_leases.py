"""Cores that one process has for itself: no two have the same, and none is ever lost."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepsched import Context, Engine, Topology, errors
from deepsched.cli import main
from deepsched.doctor import check_hardware
from deepsched.machine import lease_file
from deepsched.machine.lease_choice import choose_cores
from deepsched.machine.lease_file import NAME, LeaseFile, Lock
from deepsched.machine.leases import holders, take_lease
from deepsched.machine.topology import Core
from tests.support.injection import at_each_line

EIGHT = Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4)


@pytest.fixture(autouse=True)
def lease_dir(tmp_path, monkeypatch):
    """A file that no other test has locks on. (This process keeps the one that it has opened.)"""
    folder = tmp_path / "leases"
    folder.mkdir()
    monkeypatch.setenv("DEEPSCHED_LEASE_DIR", str(folder))
    monkeypatch.setattr("deepsched.machine.leases._books", {})
    return folder


class Process:
    """Another process, which does what it is told by lines of Python and answers each by one."""

    def __init__(self, prelude="", **options):
        program = textwrap.dedent(prelude) + textwrap.dedent(
            """
            import json, sys
            from deepsched import Topology
            from deepsched.machine.leases import holders, take_lease
            eight = Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4)
            held = []
            for line in sys.stdin:
                try:
                    answer = eval(line)
                except Exception as error:
                    answer = f"{type(error).__name__}: {error}"
                print(json.dumps(answer), flush=True)
            """
        )
        self.popen = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def ask(self, line):
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        return json.loads(self.popen.stdout.readline())

    def take(self, count, timeout=0):
        return self.ask(f"held.append(take_lease(eight, {count}, {timeout})) or held[-1].cpus")

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.popen.stdin.close()
        self.popen.stdout.close()


# --- Which cores --------------------------------------------------------------------------------


@st.composite
def machines(draw):
    """Regular and ragged ones: caches of different sizes, several kinds of core."""
    cores, l3 = [], 0
    for package in range(draw(st.integers(1, 2))):
        for node in range(draw(st.integers(1, 2))):
            for _ in range(draw(st.integers(1, 3))):
                kind = draw(st.integers(0, 1))
                for _ in range(draw(st.integers(1, 5))):
                    cpu = len(cores)
                    cores.append(Core((cpu,), cpu, l3, 2 * package + node, package, kind))
                l3 += 1
    return cores


@given(machines(), st.data())
def test_a_lease_is_the_row_of_free_cores_that_straddles_least(cores, data):
    free = data.draw(st.lists(st.sampled_from(cores), min_size=1, unique=True))
    count = data.draw(st.integers(1, len(free)))
    chosen = choose_cores(cores, free, count)
    assert len(set(chosen)) == count and set(chosen) <= set(free)
    row = [core for core in cores if core in free]
    rows = [row[start : start + count] for start in range(len(row) - count + 1)]
    assert list(chosen) in rows

    def spans(level, some):
        return len({getattr(core, level) for core in some})

    fewest = min(spans("package", it) for it in rows)
    assert spans("package", chosen) == fewest
    if len({core.kind for core in free}) == 1:
        rows = [it for it in rows if spans("package", it) == fewest]
        fewest = min(spans("numa_node", it) for it in rows)
        assert spans("numa_node", chosen) == fewest
        rows = [it for it in rows if spans("numa_node", it) == fewest]
        assert spans("l3", chosen) == min(spans("l3", it) for it in rows)


@given(machines(), st.data())
def test_a_lease_that_shrinks_keeps_cores_and_one_that_grows_takes_no_others_than_free_ones(
    cores, data
):
    own = data.draw(st.lists(st.sampled_from(cores), min_size=1, unique=True))
    others = data.draw(st.lists(st.sampled_from(cores), unique=True))
    free = [core for core in cores if core in own or core not in others]
    count = data.draw(st.integers(1, len(free)))
    choice = own if count <= len(own) else free
    chosen = choose_cores(cores, choice, count, own)
    assert len(chosen) == count and set(chosen) <= set(choice)


@given(st.permutations(range(4)))
def test_equal_leases_share_no_cache_where_that_can_be(order):
    """Four of four cores each, given back in any order, always have whole caches."""
    machine = Topology.synthetic(packages=2, l3_per_node=2, cores_per_l3=4)
    free = set(machine.cores)
    taken = []
    for _ in range(4):
        taken.append(choose_cores(machine.cores, free, 4))
        free -= set(taken[-1])
    assert sorted(it[0].l3 for it in taken) == [0, 1, 2, 3]
    for index in order:
        free |= set(taken[index])
        again = choose_cores(machine.cores, free, 4)
        assert len({core.l3 for core in again}) == 1
        free -= set(again)
        taken[index] = again


# --- Between processes ----------------------------------------------------------------------------


def test_processes_have_cores_of_their_own_and_the_last_is_told_who_has_the_others():
    with Process() as one, Process() as other, take_lease(EIGHT, 2) as lease:
        assert one.take(4) == [4, 5, 6, 7]  # a whole cache
        assert lease.cpus == (0, 1) and other.take(1) == [2]
        with pytest.raises(errors.LeaseError, match="too few of the 8 cores") as caught:
            take_lease(EIGHT, 2)
        for process, cpus in ((one, "4-7"), (other, "2")):
            assert f"process {process.popen.pid} ({sys.executable[:20]}" in str(caught.value)
            assert f"has a lease on CPU {cpus}" in str(caught.value)
        assert f"process {os.getpid()} (this one) has a lease on CPU 0-1" in str(caught.value)
        assert take_lease(EIGHT).cpus == (3,)  # all that are free


def test_cores_of_a_killed_process_are_free_at_once_though_its_forked_child_lives_on():
    with Process() as process:
        assert process.take(8) == list(range(8))
        child = process.ask("__import__('os').fork() or __import__('time').sleep(600)")
        try:
            process.kill()
            os.kill(child, 0)
            with take_lease(EIGHT, 8) as lease:
                assert len(lease.cpus) == 8
        finally:
            os.kill(child, signal.SIGKILL)


def test_waiting_ends_when_a_lease_is_given_back_and_not_before():
    with Process() as process:
        assert len(process.take(8)) == 8
        began = time.monotonic()
        with pytest.raises(errors.LeaseError, match="within 0.2 s"):
            take_lease(EIGHT, 1, timeout=0.2)
        assert time.monotonic() - began >= 0.2
        process.popen.stdin.write("__import__('threading').Timer(0.1, held.clear).start()\n")
        process.popen.stdin.flush()
        with take_lease(EIGHT, 8, timeout=60):
            pass


def test_a_lease_ends_with_its_last_reference_and_closing_twice_is_harmless():
    lease = take_lease(EIGHT, 8)
    with Process() as process:
        assert "LeaseError" in process.take(1)
        del lease
        gc.collect()
        assert len(process.take(8)) == 8
    with take_lease(EIGHT, 4) as kept:
        with take_lease(EIGHT, 4) as other:
            pass
        other.close()
        assert other.is_closed and not kept.is_closed
        with Process() as process:
            assert process.ask("[h.cpus for h in holders()]") == [list(kept.cpus)]


def test_a_successor_shares_cores_with_its_lease_until_that_is_closed():
    with (
        Process() as process,
        take_lease(EIGHT, 2) as lease,
        take_lease(EIGHT, 4, beside=lease) as grown,
    ):
        assert set(lease.cpus) < set(grown.cpus)
        with take_lease(EIGHT, 1, beside=grown) as shrunk:
            assert set(shrunk.cpus) < set(grown.cpus)
            grown.close()
            held = process.ask("[h.cpus for h in holders()]")
            assert set(sum(held, [])) == set(lease.cpus) | set(shrunk.cpus)


def test_a_forked_child_has_none_of_its_parents_leases_and_cannot_give_them_back():
    with Process() as process, take_lease(EIGHT, 4) as lease:
        pid = os.fork()
        if not pid:
            try:
                lease.close()
                own = take_lease(EIGHT, 4)  # the others: its parent is another process
                os._exit(0 if set(own.cpus).isdisjoint(lease.cpus) else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert process.ask("[h.cpus for h in holders()]") == [list(lease.cpus)]


def test_taking_and_giving_back_may_be_interrupted_at_any_line():
    class Interrupted(Exception):
        pass

    def interrupt():
        raise Interrupted

    def take(inject):
        taken = []
        with contextlib.suppress(Interrupted), inject(interrupt):
            taken.append(take_lease(EIGHT, 3))
            taken[0].close()
        for lease in taken:
            lease.close()
        with take_lease(EIGHT, 8) as lease:
            assert process.ask("[h.cpus for h in holders()]") == [list(lease.cpus)]
        assert process.ask("[h.cpus for h in holders()]") == []

    def give_back_within(inject):
        other = take_lease(EIGHT, 2)
        with inject(other.close):
            take_lease(EIGHT, 3).close()
        other.close()
        assert process.ask("[h.cpus for h in holders()]") == []

    files = ("machine/leases.py", "machine/lease_file.py")
    with Process() as process:
        assert at_each_line(files, take) > 20
        assert at_each_line(files, give_back_within) > 20


def test_leases_are_taken_again_where_a_program_closes_all_its_descriptors(caplog, lease_dir):
    with Process() as process, take_lease(EIGHT, 4) as lease:
        for fd in descriptors_of(lease_dir / NAME):  # other tests' leases stay
            os.close(fd)
        assert process.ask("[h.cpus for h in holders()]") == []
        with take_lease(EIGHT, 1) as other:
            assert set(other.cpus).isdisjoint(lease.cpus)
            assert "has closed the descriptor" in caplog.text
            held = process.ask("[h.cpus for h in holders()]")
            assert set(held[0]) == set(lease.cpus) | set(other.cpus)


def descriptors_of(path):
    """This process's, of that file."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            if os.readlink(f"/proc/self/fd/{fd}") == str(path):
                found.append(int(fd))
    return found


def test_threads_that_come_first_together_open_the_file_once(caplog, lease_dir, monkeypatch):
    """One looks who has leases while another takes the first."""
    open_file, threads = lease_file._open, []

    def open_slowly():
        if not threads:
            threads.append(threading.Thread(target=holders))
            threads[0].start()
            threads[0].join(0.2)  # it is to come between, if it can
        return open_file()

    monkeypatch.setattr(lease_file, "_open", open_slowly)
    with take_lease(EIGHT, 1):
        threads[0].join()
        assert len(descriptors_of(lease_dir / NAME)) == 1
    assert not caplog.text


def test_programs_that_are_started_do_not_inherit_the_descriptor():
    with take_lease(EIGHT, 1):
        shown = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False
        )
        assert NAME not in shown.stdout


def test_a_process_that_stops_while_it_chooses_is_named(monkeypatch):
    monkeypatch.setattr("deepsched.machine.leases._MAX_ALLOCATING_S", 0.2)
    with Process() as process:
        process.ask("held.append(__import__('deepsched.machine.leases').machine.leases._book())")
        process.ask("held.append(held[0].file.allocating()) or held[1].__enter__()")
        with pytest.raises(errors.LeaseError, match=f"process {process.popen.pid} does not end"):
            take_lease(EIGHT, 1)
        process.kill()
        take_lease(EIGHT, 1).close()


def test_where_there_can_be_no_leases_that_is_said_and_engines_start_all_the_same(
    monkeypatch, lease_dir, mlp
):
    monkeypatch.setenv("DEEPSCHED_LEASE_DIR", str(lease_dir / "missing"))
    with pytest.raises(errors.LeaseError, match="cannot be had here.*missing"):
        take_lease(EIGHT, 1)
    assert holders() == []
    with Engine(mlp):
        pass


def test_leases_of_one_cgroup_have_no_more_cores_than_its_quota_pays_for():
    machine = Topology(EIGHT.cores, cpu_quota=2.5)
    with Process() as process, take_lease(machine, 2):
        # The other process takes the machine as it is told to: here, without a quota.
        assert len(process.take(1)) == 1
        with pytest.raises(errors.LeaseError, match="CPU quota is 2.5 cores in all"):
            take_lease(machine, 1)
    with pytest.raises(errors.StreamConfigError, match="quota"):
        take_lease(machine, 4)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="acts as root")


@as_root
def test_users_share_a_file_in_a_folder_that_all_may_write_to(lease_dir):
    lease_dir.chmod(0o1777)
    (lease_dir / NAME).touch()
    os.chown(lease_dir / NAME, 65534, 65534)  # root may not open it to create it, in such a folder
    (lease_dir / NAME).chmod(0o666)
    with take_lease(EIGHT, 4) as lease, Process() as process:
        assert lease.cpus == (0, 1, 2, 3) and process.take(4) == [4, 5, 6, 7]


def test_the_file_is_for_every_user_whatever_the_umask_is(lease_dir):
    before = os.umask(0o077)
    try:
        take_lease(EIGHT, 1).close()
    finally:
        os.umask(before)
    assert (lease_dir / NAME).stat().st_mode & 0o777 == 0o666


def test_lines_of_proc_locks_that_tell_no_lock_are_passed_over(lease_dir, monkeypatch):
    leases = LeaseFile()
    leases.unlock([0], is_lease=True)  # makes the file
    status = (lease_dir / NAME).stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    lines = [
        f"1: POSIX  ADVISORY  WRITE 1 {device} 2 3",
        f"1: -> POSIX  ADVISORY  WRITE 1 {device} 4 5",  # it waits
        f"2: FLOCK  ADVISORY  WRITE 1 {device} 0 EOF",
        f"3: POSIX  ADVISORY  READ 1 {device} 6 EOF",
        f"4: POSIX  ADVISORY  WRITE one {device} 7 8",
        f"5: POSIX  ADVISORY  WRITE 1 {device}",
        "",
    ]
    monkeypatch.setattr("deepsched.machine.lease_file.read_text", lambda _: "\n".join(lines))
    assert leases.locks() == [Lock(1, 2, 4, is_lease=True)]


def test_a_file_that_may_not_be_opened_is_told(lease_dir, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(lease_dir / NAME))

    monkeypatch.setattr("deepsched.machine.lease_file._open_in", refuse)
    with pytest.raises(errors.LeaseError, match="cannot be had here.*Permission denied"):
        take_lease(EIGHT, 1)


@as_root
def test_a_holder_in_another_pid_namespace_is_seen_though_it_has_no_number(tmp_path):
    program = "from deepsched.machine.leases import holders; print(*holders())"
    with take_lease(EIGHT, 2):
        shown = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
            capture_output=True,
            text=True,
        )
        if "unshare" in shown.stderr:
            pytest.skip(f"no namespace can be made here: {shown.stderr}")
    assert shown.stdout == "a process of another PID namespace has a lease on CPU 0-1\n"


@as_root
def test_a_child_with_its_parents_number_in_another_pid_namespace_has_none_of_its_leases():
    program = """
    import ctypes, os
    from deepsched import Topology
    from deepsched.machine.leases import take_lease

    machine = Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4)
    with take_lease(machine, 4) as held:
        assert os.getpid() == 1 and not ctypes.CDLL(None).unshare(0x20000000)  # CLONE_NEWPID
        pid = os.fork()
        if not pid:
            held.close()
            own = take_lease(machine, 4)
            os._exit(0 if os.getpid() == 1 and set(own.cpus).isdisjoint(held.cpus) else 1)
        print(os.waitpid(pid, 0)[1])
    """
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr and "Operation not permitted" in done.stderr:
        pytest.skip(f"no namespace can be made here: {done.stderr}")
    assert done.stdout == "0\n", done.stderr


def test_a_file_that_cannot_be_used_is_named_not_passed_over(tmp_path, monkeypatch, caplog, capsys):
    """What is leased in one file, processes that use another do not see."""
    private, open_to_all = tmp_path / "private", tmp_path / "open"
    for folder in (private, open_to_all):
        folder.mkdir()
        folder.chmod(0o1777)
    (private / NAME).mkdir()  # root can open any file
    monkeypatch.setattr(lease_file, "folders", lambda: [private, open_to_all])
    with take_lease(EIGHT, 1):
        assert f"leases of cores are in {open_to_all / NAME}" in caplog.text
        assert str(private / NAME) in caplog.text and "DEEPSCHED_LEASE_DIR" in caplog.text
    monkeypatch.setattr("deepsched.machine.leases._books", {})
    monkeypatch.setattr(lease_file, "folders", lambda: [private])
    with pytest.raises(errors.LeaseError, match="DEEPSCHED_LEASE_DIR= names a folder"):
        take_lease(EIGHT, 1)
    assert main(["lease", "list"]) == 2  # rather than that nobody has cores
    assert "cannot be had here" in capsys.readouterr().err
    assert check_hardware()["leases"].status == "unknown"


def test_a_link_in_the_place_of_the_file_is_not_followed(lease_dir, tmp_path):
    (tmp_path / "elsewhere").write_text("kept")
    (lease_dir / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.LeaseError, match="cannot be had here"):
        take_lease(EIGHT, 1)


# Forks processes, each of which takes a lease of 1 to 3 cores, signs for each CPU in shared memory,
# crosses that out, and gives the lease back; and kills them, one after another. A CPU that a
# living process has signed for is never another's.
STRESS = """
import mmap, os, random, signal, sys, time
from deepsched import Topology, errors
from deepsched.machine.leases import take_lease

num_rounds, num_processes = int(sys.argv[1]), int(sys.argv[2])
machine = Topology.synthetic(packages=1, l3_per_node=2, cores_per_l3=4)
shared = memoryview(mmap.mmap(-1, 4096)).cast("q")
OVERLAPS, TAKEN, SIGNED = 0, 1, 64  # the second: a number for each process


def live(seed):
    chance = random.Random(seed)
    place = TAKEN + seed % num_processes
    while True:
        try:
            lease = take_lease(machine, chance.randint(1, 3))
        except errors.LeaseError:
            continue
        for cpu in lease.cpus:
            if shared[SIGNED + cpu] and is_alive(shared[SIGNED + cpu]):
                shared[OVERLAPS] += 1
            shared[SIGNED + cpu] = os.getpid()
        shared[place] += 1
        for cpu in lease.cpus:
            if shared[SIGNED + cpu] != os.getpid():
                shared[OVERLAPS] += 1
            shared[SIGNED + cpu] = 0
        lease.close()


def is_alive(pid):
    try:
        fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    except OSError:
        return False
    # A process that ends gives its locks back before it is a zombie: PF_EXITING (proc_pid_stat(5)).
    return fields[0] not in "ZX" and not int(fields[6]) & 0x4


def start(seed):
    pid = os.fork()
    if not pid:
        live(seed)
    return pid


chance = random.Random(7)
running = [start(place) for place in range(num_processes)]
for number in range(1, num_rounds + 1):
    time.sleep(chance.uniform(0, 0.005))
    place = chance.randrange(num_processes)
    os.kill(running[place], signal.SIGKILL)
    os.waitpid(running[place], 0)
    running[place] = start(num_processes * number + place)
for pid in running:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(shared[OVERLAPS], sum(shared[TAKEN : TAKEN + num_processes]))
"""


def _kill_at_any_moment(num_rounds, num_processes):
    done = subprocess.run(
        [sys.executable, "-c", STRESS, str(num_rounds), str(num_processes)],
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    num_overlaps, num_taken = map(int, done.stdout.split())
    assert num_overlaps == 0 and num_taken > num_rounds
    with take_lease(EIGHT, 8) as lease:  # none is lost
        assert len(lease.cpus) == 8


def test_killed_at_any_moment_processes_never_overlap_and_leave_no_core_behind():
    _kill_at_any_moment(num_rounds=50, num_processes=4)


@pytest.mark.field
@pytest.mark.timeout(600)
def test_a_thousand_rounds_of_eight_processes_that_are_killed_at_any_moment():
    _kill_at_any_moment(num_rounds=1000, num_processes=8)


# --- Engines --------------------------------------------------------------------------------------


def test_a_context_with_a_lease_has_its_cores_to_itself(mlp):
    with Context(cores="lease", num_cores=1) as context, Process() as other:
        assert context.lease.cpus == context.topology.cpus
        assert context.num_cores == 1 and not context.lease.is_closed
        (holder,) = other.ask("[(h.pid, h.cpus, h.is_lease) for h in holders()]")
        assert holder == [os.getpid(), list(context.lease.cpus), True]
    assert context.lease.is_closed
    with Engine(mlp, cores="lease", num_cores=1) as engine:
        assert engine.context.lease is not None


def test_an_engine_that_cannot_be_opened_gives_its_lease_back(mlp):
    with pytest.raises(errors.ModelNotFoundError):
        Engine("missing.onnx", cores="lease", num_cores=1)
    with pytest.raises(errors.StreamConfigError):
        Context(num_streams=10**6, cores="lease", num_cores=1)
    with Process() as process:
        assert process.ask("[h.cpus for h in holders()]") == []


def test_without_a_lease_the_processes_on_the_same_cores_are_named_once(caplog, mlp):
    with Process() as other, Engine(mlp, num_cores=1) as engine:
        assert "other processes use the same cores" not in caplog.text
        (cpu,) = engine.context.topology.cpus[:1]
        message = other.ask(
            "held.append(__import__('deepsched').Context(num_cores=1)) or "
            "[(h.pid, h.cpus, h.is_lease) for h in holders()]"
        )
        assert message == [[os.getpid(), [cpu], False]]
        for _ in range(2):
            with Context(num_cores=1):
                pass
        told = [it for it in caplog.messages if "other processes use the same cores" in it]
        assert len(told) == 1 and f"process {other.popen.pid}" in told[0]
        assert "cores='lease'" in told[0]


def test_a_lease_leaves_cores_alone_that_others_use_without_one():
    machine = Topology.detect()
    with Process() as other:
        other.ask("held.append(__import__('deepsched').Context()) and None")
        with pytest.raises(errors.LeaseError, match="uses, without a lease, CPU"):
            take_lease(machine, len(machine.cores))


def test_the_environment_asks_for_leases_too(monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CORES", "lease")
    with Context(num_cores=1) as context:
        assert context.lease is not None
    with Context(num_cores=1, cores="share") as context:
        assert context.lease is None
    with Context(pin="none") as context:
        assert context.lease is None
    monkeypatch.setenv("DEEPSCHED_CORES", "mine")
    with pytest.raises(errors.OptionError, match="DEEPSCHED_CORES must be 'lease' or 'share'"):
        Context()


@pytest.mark.parametrize(
    "options", [{"pin": "none"}, {"topology": EIGHT, "pin": "none"}, {"lease_timeout": -1}]
)
def test_what_cannot_be_leased_is_refused(options):
    with pytest.raises(errors.OptionError):
        Context(cores="lease", **options)


def test_a_lease_is_the_contexts(mlp):
    with Context() as context, pytest.raises(errors.OptionError, match="cores are the context's"):
        Engine(mlp, context=context, cores="lease")


# --- Who has what ---------------------------------------------------------------------------------


def test_the_command_line_lists_who_has_what(capsys):
    with Process() as other:
        assert main(["lease", "list"]) == 0
        assert capsys.readouterr().out == "no process of deepsched has cores\n"
        other.take(4)
        other.ask("held.append(__import__('deepsched').Context(num_cores=1)) and None")
        assert main(["lease", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["pid", "how", "CPUs", "command"]
        assert lines[2].split()[:3] == [str(other.popen.pid), "lease", "0-3"]
        assert lines[1].split()[1] == "used"
        assert main(["lease", "list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert collections.Counter(it["is_lease"] for it in listed) == {True: 1, False: 1}
        assert main(["topology"]) == 0
        assert f"process {other.popen.pid}" in capsys.readouterr().out
        check = check_hardware()["leases"]
        assert check.status == "warn" and str(other.popen.pid) in check.found
    assert check_hardware()["leases"].status == "ok"


# --- Workers --------------------------------------------------------------------------------------


def test_workers_have_equal_shares_of_the_budget(monkeypatch):
    monkeypatch.setenv("DEEPSCHED_WORKERS", str(len(Topology.detect().cores)))
    with Context() as context:
        assert context.lease is not None and context.num_cores == 1
    monkeypatch.setenv("DEEPSCHED_WORKERS", "1")
    with Context() as context:  # the only one
        assert context.lease is None
    monkeypatch.setenv("DEEPSCHED_WORKERS", "some")
    with pytest.raises(errors.OptionError, match="DEEPSCHED_WORKERS must be an integer"):
        Context()


def test_more_workers_than_cores_share_them_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setenv("DEEPSCHED_WORKERS", "1000")
    with Context() as context:
        assert context.lease is None and "1000 workers" in caplog.text


@given(st.integers(1, 64), st.integers(1, 64))
def test_shares_are_equal_and_fit_into_the_budget(num_cores, num_workers):
    from deepsched.machine.workers import Workers
    from deepsched.scheduling.cores import _share_of

    assume(num_workers <= num_cores)
    machine = Topology.synthetic(packages=1, cores_per_l3=num_cores)
    share = _share_of(machine, None, Workers("a test", num_workers))
    assert share >= 1 and num_cores - num_workers < share * num_workers <= num_cores
