"""Real control groups, version 1 or 2, with programs inside: what a container's limits do.

Where none can be made the test is skipped; `.ci/run` fails if it is skipped there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deepsched.machine import cgroup

_MEMORY = {1: "memory.limit_in_bytes", 2: "memory.max"}
_SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}
_PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}

# $1 to "--": where to write the shell's own pid; then the program, which takes its place.
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'


@contextlib.contextmanager
def limits(*, memory=None, pids=None, cpus=None, cpuset=None):
    """A new group below this process's own; all in it is killed at the block's end.

    Args:
        memory: bytes, without swap beside them.
        pids: how many threads and processes.
        cpus: quota and period of CPU time, in microseconds.
        cpuset: the CPUs, such as "0-1".

    Skips the test if such a group cannot be made here.

    Example:
        with limits(memory=300 << 20, cpus=(50_000, 100_000)) as group:
            print(group.run([sys.executable, "-c", code]).stdout)
    """
    wanted = {"memory": memory, "pids": pids, "cpu": cpus, "cpuset": cpuset}
    group = Group()
    try:
        try:
            for controller in [name for name, value in wanted.items() if value is not None]:
                group.add(controller)
            if memory is not None:
                group.set_memory(memory)
            if pids is not None:
                group.write("pids", "pids.max", pids)
            if cpus is not None:
                group.set_cpus(*cpus)
            if cpuset is not None:
                group.set_cpuset(cpuset)
        except OSError as error:
            pytest.skip(f"a cgroup cannot be made here: {error}")
        yield group
    finally:
        group.remove()


class Group:
    """A folder in each hierarchy that a controller is in. Made by `limits`."""

    def __init__(self):
        self._name = f"deepsched-test-{os.getpid()}-{secrets.token_hex(4)}"
        self._folders = {}  # by controller: version, folder

    def start(self, args, **options):
        """A program that is inside from its first instruction on, as a Popen with text pipes."""
        procs = {str(folder / "cgroup.procs") for _, folder in self._folders.values()}
        command = ["sh", "-c", _JOIN, "sh", *sorted(procs), "--", *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **{**pipes, **options})

    def run(self, args, timeout=60, **options):
        """Waits for such a program; returns a CompletedProcess."""
        with self.start(args, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def set_memory(self, num_bytes):
        version, _ = self._folders["memory"]
        self.write("memory", _MEMORY[version], num_bytes)
        with contextlib.suppress(OSError):  # no swap, or a kernel that does not count it
            self.write("memory", _SWAP[version], num_bytes if version == 1 else 0)

    def peak_memory(self):
        """The most that was in use at a time, in bytes; page cache included."""
        version, folder = self._folders["memory"]
        return int((folder / _PEAK[version]).read_text())

    def set_cpus(self, quota, period):
        """Microseconds of CPU time, and in how many."""
        if self._folders["cpu"][0] == 2:
            self.write("cpu", "cpu.max", f"{quota} {period}")
        else:
            self.write("cpu", "cpu.cfs_period_us", period)
            self.write("cpu", "cpu.cfs_quota_us", quota)

    def set_cpuset(self, cpus):
        """Also while programs run inside: the kernel moves them."""
        self.write("cpuset", "cpuset.cpus", cpus)

    def read(self, controller, name):
        return (self._folders[controller][1] / name).read_text()

    def write(self, controller, name, value):
        (self._folders[controller][1] / name).write_text(str(value))

    def add(self, controller):
        """Makes the folder below our own group, or below the nearest one above that allows it.
        Raises OSError."""
        error = FileNotFoundError(f"no {controller} controller is mounted")
        for mount, parent in cgroup._group_folders(Path("/"), controller):
            try:
                self._make(controller, mount.version, parent)
            except OSError as refused:
                error = refused
            else:
                return
        raise error

    def _make(self, controller, version, parent):
        folder = parent / self._name
        others = {path for kind, path in self._folders.values() if kind == version == 2}
        if others - {folder}:
            raise OSError("a process is in one group of version 2 only")
        if version == 2:
            if controller not in (parent / "cgroup.controllers").read_text().split():
                raise FileNotFoundError(f"{parent} has no {controller} controller")
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        folder.mkdir(exist_ok=True)
        self._folders[controller] = version, folder
        if controller == "cpuset" and version == 1:  # empty in a new group, which is not allowed
            (folder / "cpuset.mems").write_text((parent / "cpuset.mems").read_text())

    def remove(self):
        """Kills what is inside; a group can be removed once all of it has ended."""
        deadline = time.monotonic() + 10
        for folder in {folder for _, folder in self._folders.values()}:
            while folder.exists():
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    folder.rmdir()
                except OSError:  # busy: the killed are still ending
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
