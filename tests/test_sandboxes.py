"""Engines start wherever plain onnxruntime starts: what a host lacks costs a feature and a warning.

Each case is run by plain onnxruntime as well, in the same process. Those that issues were about run
always, the others with `-m field`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import models
from tests.support.sandbox import run_sandboxed
from tests.support.seccomp import NUMBERS
from tests.support.users import public  # noqa: F401  a fixture

# Plain onnxruntime's answer, then ours by every way in: cold, warm, and from bytes in memory.
# Prints the distinct warnings as JSON.
BOTH_RUN = """
import asyncio, json, logging, os, sys
import numpy as np
import onnxruntime

x = np.ones((1, 256), np.float32)
expected = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"x": x})[0]

from deepsched import Engine

warnings = {}
handler = logging.Handler()
handler.emit = lambda record: warnings.setdefault(record.msg, record.getMessage())
logging.getLogger("deepsched").addHandler(handler)


async def on_loop(engine):
    return await engine.run_async([x])


def check(model, **options):
    with Engine(model, **options) as engine:
        ways = engine.run([x]), engine.submit([x]).result(), asyncio.run(on_loop(engine))
        for answer in (*ways, *engine.map([[x]])):
            np.testing.assert_allclose(answer[0], expected, rtol=1e-4)
        engine.memory(), engine.stats()


check(sys.argv[1])
check(sys.argv[1])
told = list(warnings.values())
with open(sys.argv[1], "rb") as file:
    check(file.read(), scheduler="elastic", cache_dir=None)
assert not os.path.exists("~")
print(json.dumps(told))
"""

READ_ONLY = """
for folder in /tmp /var/tmp /dev/shm; do
    mount --bind $folder $folder
    mount -o remount,bind,ro $folder
done
mount -o remount,bind,ro /
cd /
"""
MEDIA = "mount -t tmpfs -o mode=1777 none /media; "
NOT_KEPT = "the compiled model is not kept for the next start: "
UNKNOWN_CORES = "this machine's cores, caches and NUMA nodes are unknown"
NO_BOOT_ID = "models and their compiled forms are read in full at each start"
NO_PROC = "/proc is not mounted"


class Case:
    def __init__(self, mounts, *warnings, as_other=False, **environment):
        self.mounts = mounts
        self.warnings = warnings
        self.as_other = as_other
        self.environment = {"HOME": "/media", **environment}


ALWAYS = {
    "read-only, small shm": Case(
        f"{READ_ONLY} mount -t tmpfs -o size=64k none /dev/shm", NOT_KEPT, HOME="/usr"
    ),
    "no HOME, no passwd entry": Case(f"{MEDIA} cd /media", NOT_KEPT, as_other=True, HOME=None),
    "no proc, no sys": Case("umount -l /sys; umount -l /proc", NO_PROC, UNKNOWN_CORES),
}
FIELD = {
    "read-only, large shm": Case(
        f"{READ_ONLY} mount -t tmpfs none /dev/shm", NOT_KEPT, HOME="/usr"
    ),
    "nothing is writable": Case(READ_ONLY, NOT_KEPT, HOME="/usr", as_other=True),
    "no proc/sys": Case(f"{MEDIA} mount -t tmpfs none /proc/sys", NO_BOOT_ID),
    "no proc": Case("umount -l /proc", NO_PROC),
    "no sys": Case(f"{MEDIA} umount -l /sys"),
    "hidden proc": Case(
        f"{MEDIA} mount -t proc -o hidepid=2,subset=pid proc /proc", NO_BOOT_ID, as_other=True
    ),
    "no dev": Case(f"{MEDIA} mount -t tmpfs -o ro none /dev"),
    "no shm": Case(f"{MEDIA} mount -t tmpfs none /dev"),
    "noexec": Case(
        f"{MEDIA} mount -o remount,noexec /media; mount -t tmpfs -o noexec none /dev/shm"
    ),
    "no space": Case(
        f"{READ_ONLY} mount -t tmpfs -o size=4k none /media; "
        "mount -t tmpfs -o size=4k none /dev/shm",
        NOT_KEPT,
    ),
    "no inodes": Case(
        f"{READ_ONLY} mount -t tmpfs -o nr_inodes=2 none /media; "
        "mount -t tmpfs -o nr_inodes=2 none /dev/shm",
        NOT_KEPT,
    ),
    "HOME is missing": Case("", NOT_KEPT, as_other=True, HOME="/nonexistent"),
    "HOME is a file": Case("", NOT_KEPT, HOME="/etc/passwd"),
    "HOME is read-only": Case("mount -t tmpfs -o ro none /media", NOT_KEPT),
    "HOME is relative": Case(f"{MEDIA} cd /media", NOT_KEPT, HOME="here"),
    "TMPDIR is missing": Case(MEDIA, TMPDIR="/nonexistent"),
    "no passwd": Case(
        "mount --bind /dev/null /etc/passwd; mount --bind /dev/null /etc/group",
        NOT_KEPT,
        as_other=True,
        HOME=None,
    ),
    "no working folder": Case(f"{MEDIA} mkdir /media/gone; cd /media/gone; rmdir /media/gone"),
    "few descriptors": Case(f"{MEDIA} ulimit -n 20"),
    "no files": Case(f"{MEDIA} ulimit -f 0", NOT_KEPT),
    "small stacks": Case(f"{MEDIA} ulimit -s 256"),
    "locale C": Case(MEDIA, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "umask 777": Case(f"{MEDIA} umask 777"),
}


def is_public(path):
    """Whether other users can reach it."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def check_case(case, folder):
    if case.as_other and not is_public(Path(sys.prefix)):
        pytest.skip(f"other users cannot reach {sys.prefix}")
    models.save(models.gemm(), folder)
    ran = run_sandboxed(
        BOTH_RUN,
        f"mount --bind {folder} /mnt; {case.mounts}",
        "/mnt/model.onnx",
        as_other=case.as_other,
        **case.environment,
    )
    assert ran.returncode == 0, ran.stderr
    # Not whether this machine has a file of leases already, which the case cannot write to.
    told = [it for it in json.loads(ran.stdout) if not it.startswith("leases of cores are in")]
    assert len(told) == len(case.warnings), told
    for expected in case.warnings:
        assert any(expected in warning for warning in told), told


@pytest.mark.parametrize("name", ALWAYS)
def test_an_engine_starts_in(name, public):  # noqa: F811
    check_case(ALWAYS[name], public)


@pytest.mark.field
@pytest.mark.parametrize("name", FIELD)
def test_an_engine_starts_also_in(name, public):  # noqa: F811
    check_case(FIELD[name], public)


# --- System calls that are refused ------------------------------------------------------------

UNPINNED = "threads are not pinned: "


def run_without(calls, code, program, *arguments):
    """Runs the program in a process where these system calls fail with `code`."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.support.seccomp import refuse\nrefuse(*{calls}, code={code})\n"
            + textwrap.dedent(program),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "cannot be made here" in ran.stderr:
        pytest.skip("a filter of system calls cannot be made here")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("calls", "code"),
    [
        (["sched_setaffinity"], errno.EPERM),
        (["sched_getaffinity"], errno.ENOSYS),
        (["eventfd2"], errno.EPERM),
    ],
)
def test_an_engine_starts_without_system_calls(calls, code, model_path):
    told = run_without(calls, code, BOTH_RUN, model_path)
    assert len(told) == ("eventfd2" not in calls)
    assert all(warning.startswith(f"{UNPINNED}{os.strerror(code)}") for warning in told)


@pytest.mark.field
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("call", NUMBERS)
def test_an_engine_starts_without_any_system_call_that_onnxruntime_can_miss(
    call, code, model_path, monkeypatch, tmp_path
):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    assert len(run_without([call], code, BOTH_RUN, model_path)) <= 1


def test_pinning_that_is_asked_for_and_refused_says_why(model_path):
    program = """
    import json, sys
    from deepsched import Context, Engine
    from deepsched.errors import ThreadError

    told = []
    for make in (lambda: Context(pin="core"), lambda: Engine(sys.argv[1], pin="core")):
        try:
            make()
        except ThreadError as error:
            told.append(f"{error.errno} {error.strerror}")
    print(json.dumps(told))
    """
    told = run_without(["sched_setaffinity"], errno.EPERM, program, model_path)
    assert [line.split(":")[0] for line in told] == ["1 threads cannot be pinned"] * 2
    assert all("Operation not permitted" in line for line in told)


@pytest.fixture
def model_path(tmp_path):
    return models.save(models.gemm(), tmp_path)
