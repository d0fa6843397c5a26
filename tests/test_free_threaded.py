"""Many threads at once where a GIL would serialise them. `.ci/run` runs this without one."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest

from deepsched import Context, Engine
from deepsched.context import open_contexts
from deepsched.errors import ClosedError, DeadlineExceeded, OptionError
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.requests import LONG, SQUARE, STEPS, item
from tests.support.threads import in_threads

NUM_THREADS = 8

IMPORT_ALL = """
import importlib, pkgutil, sys
import numpy
before = sys._is_gil_enabled()
import deepsched.runtime
for module in pkgutil.iter_modules(deepsched.runtime.__path__):
    importlib.import_module(f"deepsched.runtime.{module.name}")
    assert sys._is_gil_enabled() == before, module.name
"""


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="Python before 3.13")
def test_no_module_turns_the_gil_on():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, timeout=60)


def test_the_library_is_loaded_once_by_threads_that_are_first_together():
    script = """
from tests.support.threads import in_threads
from deepsched.runtime.library import describe_library
found = []
in_threads(8, lambda _: found.append(describe_library()["version"]))
assert len(found) == 8 and len(set(found)) == 1 and found[0]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_contexts_and_engines_come_and_go_in_many_threads():
    """Each opens, runs and closes its own, while others list what is open."""

    def work(i):
        for _ in range(3):
            with unpinned(1) as context, Engine(models.gather(), None, context=context) as engine:
                assert context in open_contexts()
                assert engine.run(item(i))[0].tolist() == [i]
            assert context not in open_contexts()

    in_threads(NUM_THREADS, work)


def test_models_of_one_context_have_numbers_of_their_own():
    with unpinned(2) as context:
        numbers = []

        def work(_):
            with Engine(models.gather(), None, context=context) as engine:
                numbers.append(engine._model.number)

        in_threads(NUM_THREADS, work)
        assert len(set(numbers)) == NUM_THREADS


def test_an_engine_is_closed_once_by_threads_that_close_it_together():
    """Those that ask for its memory meanwhile are told, or told that it is closed."""
    for _ in range(3):
        engine = Engine(models.gather(), None)

        def work(i, engine=engine):
            if i % 2:
                engine.close()
                assert engine.is_closed
                return
            for _ in range(20):
                try:
                    engine.memory()
                except ClosedError:
                    return

        in_threads(NUM_THREADS, work)
        assert engine._served.opened.sessions[0].arena_bytes() is None


def test_one_watcher_serves_threads_whose_timeouts_are_the_first_together():
    with unpinned(2) as context:
        engine = Engine(models.spin(), None, context=context)

        def work(_):
            with pytest.raises(DeadlineExceeded):
                engine.run(LONG, timeout=0.05)
            assert engine.run([STEPS, SQUARE], timeout=60)[0].shape == (64, 64)

        in_threads(NUM_THREADS, work)
        assert context.stats().expired == NUM_THREADS


def test_abandoned_requests_are_freed_by_whoever_comes_next():
    """Timeouts leave requests to `reap`, which every call makes; each is freed once, its inputs
    with it."""
    with unpinned(1) as context:
        engine = Engine(models.spin(), None, context=context)
        square = np.zeros((64, 64), np.float32)
        count = sys.getrefcount(square)

        def work(i):
            for _ in range(10):
                try:
                    engine.run([STEPS, square], timeout=1e-4 * (i + 1))
                except DeadlineExceeded:
                    continue

        in_threads(NUM_THREADS, work)
        engine.close()
    gc.collect()
    assert sys.getrefcount(square) == count


def test_one_of_those_who_begin_a_trace_together_has_it():
    with Context(num_cores=1, pin="none") as context:
        ends = []

        def work(_):
            for _ in range(20):
                try:
                    with context.trace(capacity=10) as trace:
                        pass
                    ends.append(len(trace))
                except OptionError:
                    ends.append(None)

        in_threads(NUM_THREADS, work)
        assert len(ends) == 20 * NUM_THREADS
        assert 0 in ends
