"""A process with room for so many threads, or files, and no more: what its engines do.

`openings` and `requests` are called in a process of its own, with a model's path in MODEL.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np

from deepsched import Context, Engine, Topology, compile_model
from deepsched.benchmark.load import MonotonicClock, closed_loop
from deepsched.errors import FileLimitError, ThreadError
from tests.support.users import OTHER

_PR_SET_DUMPABLE = 4

X = np.ones((1, 64), np.float32)


# --- Limits -------------------------------------------------------------------------------------


def threads():
    return len(os.listdir("/proc/self/task"))


def files():
    """The descriptors that are open."""
    names = os.listdir("/proc/self/fd")
    return {int(name) for name in names if os.path.lexists(f"/proc/self/fd/{name}")}  # not its own


def _bound(count):
    # A thread that was joined is listed for a moment, so the room may be larger; but not for 0.
    return threads() + count if count else 0


@contextlib.contextmanager
def room_for_threads(count):
    """By RLIMIT_NPROC, in a process that is its user's only one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (_bound(count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


@contextlib.contextmanager
def room_for_pids(count):
    """By the limit of the cgroup that only this process is in, whose file is in PIDS_MAX."""
    limit = Path(os.environ["PIDS_MAX"])
    limit.write_text(str(_bound(count)))
    try:
        yield
    finally:
        limit.write_text("max")


@contextlib.contextmanager
def room_for_files(count):
    """By RLIMIT_NOFILE, which bounds the number that a descriptor may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken, num_free, bound = files(), 0, 0
    while num_free < count:
        num_free += bound not in taken
        bound += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


ROOMS = {
    "threads": (room_for_threads, ThreadError),
    "pids": (room_for_pids, ThreadError),
    "files": (room_for_files, FileLimitError),
}


def _prepare(kind):
    for way in _WAYS:  # imports all that it imports, and starts what stays
        way()
    with compile_model(os.environ["MODEL"]) as engine:
        _map(engine)
    if kind == "threads":
        # Root may have more threads than its limit says. Another user sees none of our modules.
        os.setgroups([])
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(OTHER, OTHER, OTHER)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's


# --- What is tried ------------------------------------------------------------------------------


def _context(scheduler="multi_stream"):
    machine = Topology.synthetic(packages=1, cores_per_l3=2)
    return Context(topology=machine, num_streams=2, scheduler=scheduler, pin="none")


def _warm(scheduler="multi_stream", **options):
    with (
        _context(scheduler) as context,
        Engine(os.environ["MODEL"], context=context, **options) as engine,
    ):
        _run(engine)


def _cold():
    shutil.rmtree(Path(os.environ["DEEPSCHED_CACHE_DIR"], "v1"), ignore_errors=True)
    _warm()


def _in_memory():
    _warm(cache_dir=None)


def _elastic():
    _warm("elastic")


def _wide():
    with compile_model(os.environ["MODEL"]) as engine:
        _run(engine)


_WAYS = _warm, _cold, _in_memory, _elastic, _wide


def _run(engine):
    assert len(engine.run([X])) == 1


def _run_in_time(engine):
    assert len(engine.run([X], timeout=60)) == 1


def _submit(engine):
    assert len(engine.submit([X]).result(timeout=60)) == 1


def _submit_in_time(engine):
    assert len(engine.submit([X], timeout=60).result(timeout=60)) == 1


def _map(engine):
    assert len(list(engine.map([[X]] * 5))) == 5
    assert len(list(engine.map([[X]] * 5, progress=True))) == 5


def _batched_run(engine):
    assert len(engine.batched_run([np.repeat(X, 4, 0)])[0]) == 4


def _trace(engine):
    with engine.context.trace() as trace:
        engine.run([X])
    assert len(trace) == 1


def _load(engine):
    clock = MonotonicClock()
    options = {"seconds": 0.01, "warmup_seconds": 0, "clock": clock, "on_tick": lambda ns: None}
    assert len(closed_loop(engine.run, [X], callers=3, **options))


_CALLS = _run, _run_in_time, _submit, _submit_in_time, _map, _batched_run, _trace, _load


def openings(kind, count):
    """Opens engines in each way with room for 0, 1, ... count - 1; returns how many failed."""

    def scenario(way, refused):
        with refused():
            way()
        way()

    return _count_refused(kind, count, scenario, _WAYS)


def requests(kind, count):
    """The same with each call on an open engine, which has to serve it afterwards."""

    def scenario(call, refused):
        with _context() as context, Engine(os.environ["MODEL"], context=context) as engine:
            with refused():
                call(engine)
            call(engine)
            call(engine)

    return _count_refused(kind, count, scenario, _CALLS)


def event_loops(kind, count):
    """The same with event loops."""

    async def both(engine):
        return await asyncio.gather(engine.run_async([X]), engine.run_async([X], timeout=60))

    def scenario(call, refused):
        loop = asyncio.new_event_loop()
        with _context() as context, Engine(os.environ["MODEL"], context=context) as engine:
            with refused():
                loop.run_until_complete(call(engine))
            assert len(loop.run_until_complete(call(engine))) == 2
        loop.close()

    return _count_refused(kind, count, scenario, [both])


def _count_refused(kind, count, scenario, calls):
    _prepare(kind)
    room, expected = ROOMS[kind]
    num_refused = 0

    @contextlib.contextmanager
    def refused(number):
        nonlocal num_refused
        with room(number):
            try:
                yield
            except expected:
                num_refused += 1

    for call in calls:
        before = threads(), len(files())
        for number in range(count):
            scenario(call, functools.partial(refused, number))
            until = time.monotonic() + 10
            while (threads(), len(files())) != before:  # a joined thread is listed for a moment
                assert time.monotonic() < until, f"left: {before}, {threads()}, {files()}"
                gc.collect()
    return num_refused
