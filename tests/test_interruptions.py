"""Signal handlers, finalizers, callbacks, forks, refused threads: none loses or hangs a request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from decimal import Decimal

import numpy as np
import pytest
from onnx import TensorProto, helper

from deepsched import Engine
from deepsched import context as context_module
from deepsched.errors import (
    ClosedError,
    DeadlineExceeded,
    ForkError,
    InferenceError,
    InputTypeError,
    OptionError,
)
from tests.support import models
from tests.support.cgroups import limits
from tests.support.contexts import unpinned
from tests.support.injection import at_each_line
from tests.support.requests import SQUARE, STEPS, run_until_busy
from tests.support.threads import in_threads

# --- Values that a run decides ------------------------------------------------------------------


def reshaped(dtype, wrap_in_sequence=False):
    """y = x in the shape that the input `shape` says."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r" if wrap_in_sequence else "y"])]
    output = helper.make_tensor_value_info("y", dtype, None)
    if wrap_in_sequence:
        nodes.append(helper.make_node("SequenceConstruct", ["r"], ["y"]))
        output = helper.make_tensor_sequence_value_info("y", dtype, None)
    inputs = [models.tensor("x", [None], dtype), models.tensor("shape", [None], TensorProto.INT64)]
    return models.make(nodes, inputs, [output])


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (reshaped(TensorProto.FLOAT), np.ones(1, np.float32)),
        (reshaped(TensorProto.FLOAT), np.ones(0, np.float32)),
        (reshaped(TensorProto.STRING), np.array(["a"], object)),
        (reshaped(TensorProto.FLOAT, True), np.ones(1, np.float32)),
    ],
)
@pytest.mark.parametrize("rank", [65, 70, 500])
def test_an_output_of_too_many_dimensions_is_an_error(model, x, rank):
    shape = np.ones(rank, np.int64)
    shape[0] = len(x)
    with Engine(model, None) as engine:
        with pytest.raises(InferenceError, match=f"{rank} dimensions"):
            engine.run([x, shape])
        assert len(engine.run([x, np.array([len(x)], np.int64)])) == 1


def test_an_output_of_as_many_dimensions_as_numpy_has_is_an_array():
    rank = 64 if int(np.__version__.split(".")[0]) >= 2 else 32
    with Engine(reshaped(TensorProto.FLOAT), None) as engine:
        (out,) = engine.run([np.ones(1, np.float32), np.ones(rank, np.int64)])
    assert out.ndim == rank


def test_a_lone_surrogate_in_a_string_is_an_error_that_names_the_input():
    with (
        Engine(models.identity(dtype=TensorProto.STRING), None) as engine,
        pytest.raises(InputTypeError, match="'x'.*surrogates"),
    ):
        engine.run([np.array(["\ud800"], object)])


# --- Threads that cannot be had -----------------------------------------------------------------


THREE_THREADS = """
import os, sys
from deepsched.errors import ThreadError
from deepsched.runtime.session import open_session


def open_with(num):
    return open_session(sys.argv[1], num_threads=num, cpus=None, thread_prefix="t", config={})


open_with(1)
before = len(os.listdir("/proc/self/task"))
print(before, flush=True)
for line in sys.stdin:
    try:
        session = open_with(3)
    except ThreadError as error:
        print(error, flush=True)
    else:
        print(len(os.listdir("/proc/self/task")) - before, flush=True)
"""


def test_a_session_whose_threads_cannot_all_start_is_an_error(tmp_path):
    """ORT waits for ever if it has started some of its threads and not the others."""
    with limits(pids=1000) as group:
        process = group.start(
            [sys.executable, "-c", THREE_THREADS, models.save(models.mlp(), tmp_path)],
            stdin=subprocess.PIPE,
        )
        num_threads = int(process.stdout.readline())
        for room, told in ((0, "thread 1 of the 2"), (1, "thread 2 of the 2"), (2, "2")):
            group.write("pids", "pids.max", num_threads + room)
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert told in answer
            assert room == 2 or "pids.max" in answer
        process.communicate(timeout=30)


# --- Callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_a_callback_that_raises_anything_ends_no_other_future(spin, error, caplog):
    called = threading.Event()

    def raise_it(_):
        raise error

    running = run_until_busy(spin)
    future = spin.submit([STEPS, SQUARE])
    future.add_done_callback(raise_it)
    future.add_done_callback(lambda _: called.set())
    running.cancel()
    assert len(future.result(timeout=60)) == 1
    assert called.wait(60)
    assert len(spin.submit([STEPS, SQUARE]).result(timeout=60)) == 1
    assert "callback" in caplog.text


# --- Options are checked before anything is queued ----------------------------------------------


@pytest.mark.parametrize("timeout", [Decimal("30"), 10**400, float("inf"), 1e10, np.float32(30)])
def test_any_number_of_seconds_is_a_timeout(spin, timeout):
    assert len(spin.run([STEPS, SQUARE], timeout=timeout)) == 1
    assert len(spin.submit([STEPS, SQUARE], timeout=timeout).result(60)) == 1
    assert len(asyncio.run(spin.run_async([STEPS, SQUARE], timeout=timeout))) == 1
    assert spin.stats().done == 3


@pytest.mark.parametrize("timeout", [-1, float("nan"), -(10**400), "1", b"1", True, [1], 1j])
def test_what_is_no_timeout_is_refused_and_never_runs(spin, timeout):
    for call in (
        lambda: spin.run([STEPS, SQUARE], timeout=timeout),
        lambda: spin.submit([STEPS, SQUARE], timeout=timeout),
        lambda: asyncio.run(spin.run_async([STEPS, SQUARE], timeout=timeout)),
    ):
        with pytest.raises(OptionError, match="timeout must be"):
            call()
    stats = spin.stats()
    assert stats.done == stats.expired == stats.cancelled == 0


class StopsIteration:
    def __array__(self, *args, **kwargs):
        raise StopIteration("not the end of the map")


def test_a_map_does_not_end_in_silence(spin):
    items = [[STEPS, SQUARE], [STEPS, SQUARE], [STEPS, StopsIteration()], [STEPS, SQUARE]]
    results = spin.map(items, in_flight=1)
    next(results), next(results)
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)


# --- What is kept -------------------------------------------------------------------------------


def test_a_future_that_is_done_keeps_no_inputs(spin):
    array = np.eye(64, dtype=np.float32)
    gone = weakref.ref(array)
    future = spin.submit([STEPS, array])
    future.result(timeout=60)
    del array
    end = time.monotonic() + 10
    while gone() is not None and time.monotonic() < end:  # the resolver may have it still
        threading.Event().wait(0.001)
    assert gone() is None
    assert len(future.result()) == 1


def alive(references):
    return sum(reference() is not None for reference in references)


def test_a_future_that_failed_keeps_no_inputs():
    """Nor does its error's traceback, whose frames would hold all that ended with it."""
    bad = np.array([5], np.int64)  # out of range: the kernel fails
    with unpinned(1) as context, Engine(models.gather(), None, context=context) as engine:
        arrays = [np.zeros(4, np.float32) for _ in range(8)]
        references = [weakref.ref(array) for array in arrays]
        gc.disable()
        try:
            futures = [engine.submit([array, bad]) for array in arrays]
            concurrent.futures.wait(futures, timeout=60)
            del arrays
            end = time.monotonic() + 10
            while alive(references) and time.monotonic() < end:  # the resolver may hold the last
                threading.Event().wait(0.001)
            assert not alive(references)
            assert all(isinstance(future.exception(), InferenceError) for future in futures)

            async def run_all():
                arrays = [np.zeros(4, np.float32) for _ in range(8)]
                references[:] = map(weakref.ref, arrays)
                runs = [engine.run_async([array, bad]) for array in arrays]
                return await asyncio.gather(*runs, return_exceptions=True)

            errors = asyncio.run(run_all())
            assert all(isinstance(error, InferenceError) for error in errors)
            for error in errors:
                error.__traceback__ = None  # that of gather's own coroutines
            assert not alive(references)
        finally:
            gc.enable()


@pytest.mark.parametrize("end", ["expired", "given up"])
def test_what_ends_after_its_loop_keeps_no_inputs(spin, end):
    """The request, queued behind a long run, is freed with the next that a loop asks for."""
    array = np.eye(64, dtype=np.float32)
    gone = weakref.ref(array)
    before = run_until_busy(spin)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # it says what is given up
    timeout = 0.001 if end == "expired" else None
    task = loop.create_task(spin.run_async([STEPS, array], timeout=timeout))
    del array
    if end == "expired":
        with pytest.raises(DeadlineExceeded):
            loop.run_until_complete(task)
    else:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del loop, task
    before.cancel()
    spin.run([np.array(1), SQUARE])  # one stream: the request has ended
    asyncio.run(spin.run_async([np.array(1), SQUARE]))
    gc.collect()
    assert gone() is None


def test_deadlines_of_futures_that_are_done_are_forgotten(spin):
    quick = [np.array(1), SQUARE]
    for _ in range(5):
        futures = [spin.submit(quick, timeout=1000) for _ in range(500)]
        for future in futures:
            future.result(timeout=60)
    resolver = spin._shared.resolver
    assert len(resolver._deadlines) + len(resolver._new_deadlines) < 1500


# --- A long run behind short ones ---------------------------------------------------------------


def test_a_long_run_holds_no_notification_of_short_ones_up():
    """ "Short" is the model's average; the next run may be long all the same."""
    short = [np.array(1, np.int64), np.zeros((1, 64), np.float32)]
    long = [np.array(10**8, np.int64), short[1]]
    with unpinned(1) as context, Engine(models.spin(rows=1), None, context=context) as engine:
        for _ in range(200):
            engine.submit(short).result(timeout=60)
        for _ in range(20):
            # Held up so that all of these are taken by the worker in one go.
            plug = engine.submit([np.array(20_000, np.int64), short[1]])
            futures = [engine.submit(short) for _ in range(3)]
            last = engine.submit(long)
            plug.result(timeout=60)
            for future in futures:
                future.result(timeout=5)
            assert not last.done()
            last.cancel()
            for _ in range(20):  # short again, on average
                engine.submit(short).result(timeout=60)


# --- Elastic: opened on a busy context ----------------------------------------------------------


def test_an_engine_opens_while_a_crowd_keeps_all_streams_busy():
    stop = threading.Event()
    x = [np.array(2000, np.int64), SQUARE]
    with unpinned(2, "elastic") as context, Engine(models.spin(), None, context=context) as busy:

        def call():
            while not stop.is_set():
                busy.run(x)

        callers = [threading.Thread(target=call) for _ in range(5)]
        for caller in callers:
            caller.start()
        try:
            began = time.monotonic()
            with Engine(models.mlp(), None, context=context) as engine:
                took = time.monotonic() - began
                engine.run([np.ones((1, 64), np.float32)])
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        assert took < 30
        assert len(busy.run(x)) == 1


def test_close_during_a_measurement_waits_for_nobody_who_waits_for_it():
    """Requests wait, and nobody may serve them while the measurement has the cores."""
    long = [np.array(400_000), SQUARE]
    closed = threading.Event()
    with unpinned(2, "elastic") as context:
        engine = Engine(models.spin(), None, context=context)
        futures = [engine.submit(long) for _ in range(8)]
        while not futures[0].running():
            threading.Event().wait(0.001)

        def close(*_):
            engine.close()
            closed.set()

        before = signal.signal(signal.SIGALRM, close)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with Engine(models.mlp(), None, context=context) as other:
                assert len(other.run(X)) == 1
            assert closed.wait(60)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert all(future.done() or future.exception(60) is None for future in futures)


def test_engines_that_open_at_once_are_all_measured(caplog):
    with unpinned(2, "elastic") as context:
        engines = []
        in_threads(4, lambda _: engines.append(Engine(models.mlp(), None, context=context)))
        assert "cannot be measured" not in caplog.text
        for engine in engines:
            engine.close()


# --- Signals ------------------------------------------------------------------------------------


def repeatedly_signalled(handler, body, seconds=3.0):
    """Calls `body` for as long, while SIGUSR1 keeps arriving in this thread, the main one."""
    stop = threading.Event()

    def send():
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            stop.wait(0.0007)

    before = signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            body()
    finally:
        stop.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


X = [np.ones((1, 64), np.float32)]
FILES = (
    "engine.py",
    "context.py",
    "invocation/futures.py",
    "scheduling/streams.py",
    "scheduling/served.py",
    "scheduling/placement.py",
    "scheduling/model_registry.py",
)


def test_a_handler_may_close_the_engine_at_any_line_of_a_call():
    model = models.mlp()

    def submit(inject):
        with unpinned(1) as context:
            engine = Engine(model, None, context=context)
            with contextlib.suppress(ClosedError, CancelledError), inject(context.close):
                engine.submit(X, timeout=60).result(timeout=60)

    assert at_each_line(FILES, submit) > 20

    def cancel(inject):
        with unpinned(1) as context:
            engine = Engine(model, None, context=context)
            future = engine.submit(X, timeout=60)
            with inject(context.close):
                future.cancel()
                future.running()
            assert future.done()

    assert at_each_line(FILES, cancel) > 5


@pytest.mark.field
def test_a_handler_may_close_the_context_at_any_line_of_opening_an_engine():
    model = models.mlp()

    def open_engine(inject):
        with unpinned(1) as context:
            with contextlib.suppress(ClosedError), inject(context.close):
                Engine(model, None, context=context)
            if context.is_closed:
                with pytest.raises(ClosedError):
                    Engine(model, None, context=context)

    assert at_each_line(FILES, open_engine) > 20


@pytest.mark.field
def test_a_handler_may_close_the_context_or_submit_at_any_line_of_a_move():
    model = models.identity()

    def closing(inject):
        with unpinned(2) as context, Engine(model, None, context=context):
            with contextlib.suppress(ClosedError), inject(context.close):
                context.resize(1)
            assert not context._shared._left

    def submitting(inject):
        with unpinned(2) as context:
            engine = Engine(model, None, context=context)
            futures = []
            with inject(lambda: futures.append(engine.submit([X[0][0]]))):
                context.resize(1)
            assert all(future.result(timeout=60) for future in futures)
            assert engine.stats().done == context.stats().done == len(futures)

    assert at_each_line(FILES, closing) > 50
    assert at_each_line(FILES, submitting) > 50


@pytest.mark.field
def test_a_move_may_be_interrupted_at_any_line_and_tried_again():
    class Interrupted(Exception):
        pass

    def interrupt():
        raise Interrupted

    model = models.identity()

    def move(inject):
        with unpinned(2) as context:
            engine = Engine(model, None, context=context)
            engine.run([X[0][0]])
            with contextlib.suppress(Interrupted), inject(interrupt):
                context.resize(1)
            engine.run([X[0][0]])
            context.resize(1)
            engine.run([X[0][0]])
            assert context.num_streams == 1
            assert engine.stats().done == context.stats().done == 3

    assert at_each_line(FILES, move) > 50


def test_close_may_be_interrupted_at_any_line_and_called_again():
    class Interrupted(Exception):
        pass

    def interrupt():
        raise Interrupted

    def close(inject):
        context = unpinned(1)
        engine = Engine(models.identity(), None, context=context)
        engine.submit([X[0][0]]).result(timeout=60)
        with contextlib.suppress(Interrupted), inject(interrupt):
            engine.close()
            context.close()
        engine.close()
        context.close()
        assert engine._served.opened.sessions[0].arena_bytes() is None  # freed
        assert context not in context_module.open_contexts()

    assert at_each_line(FILES, close) > 20


def test_a_finalizer_may_cancel_the_future_that_is_being_cancelled(spin):
    running = run_until_busy(spin)

    def cancel(inject):
        future = spin.submit([STEPS, SQUARE])
        with inject(future.cancel):
            future.cancel()
        assert future.cancelled()

    assert at_each_line(FILES, cancel) > 5
    running.cancel()


def test_close_that_was_interrupted_ends_when_called_again(spin):
    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    running = run_until_busy(spin)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            spin.close()  # waits for the run
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    running.cancel()
    sessions = spin._served.opened.sessions
    spin.close()
    assert all(session.arena_bytes() is None for session in sessions)  # freed
    assert spin.context.stats().cancelled == 1


# --- fork ---------------------------------------------------------------------------------------


def in_child(body, timeout=30):
    """Whether `body` returned True in a forked child, within so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if body() else 2
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def raises(error, call):
    try:
        call()
    except error:
        return True
    return False


def test_a_child_is_refused_whatever_its_parents_threads_hold(spin):
    """Every lock that another thread may hold as this one forks is held."""
    running = run_until_busy(spin)
    waiting = spin.submit([STEPS, SQUARE])
    registry = spin._shared.registry
    held, done = threading.Event(), threading.Event()

    def hold():
        with registry._lock, waiting._condition, running._condition:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert in_child(lambda: raises(ForkError, lambda: spin.submit([STEPS, SQUARE])))
        assert in_child(lambda: raises(ForkError, lambda: spin.run([STEPS, SQUARE])))
        assert in_child(lambda: raises(ForkError, lambda: next(spin.map([[STEPS, SQUARE]]))))
        assert in_child(lambda: raises(ForkError, lambda: spin.context.trace().__enter__()))
        assert in_child(lambda: raises(ForkError, spin.context.stats))
        assert in_child(lambda: raises(ForkError, waiting.result))
        assert in_child(lambda: raises(ForkError, waiting.exception))
        assert in_child(lambda: not waiting.cancel())
        assert in_child(lambda: not waiting.done() and not waiting.cancelled())
        assert in_child(lambda: "of a parent process" in repr(waiting))
        assert in_child(lambda: raises(ForkError, lambda: waiting.add_done_callback(print)))
        model = models.identity()
        assert in_child(lambda: raises(ForkError, lambda: Engine(model, context=spin.context)))
        assert in_child(lambda: spin.close() is None)
    finally:
        done.set()
        holder.join()
        running.cancel()
    assert len(waiting.result(timeout=60)) == 1
