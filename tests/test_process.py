"""What the operating system sees: threads, affinity, signals, fork, exit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from deepsched import Context, Engine, Topology, compile_model
from deepsched.models import compiled
from deepsched.models.prepare import prepare_model
from tests.support import models
from tests.support.processes import finish, run_python, start_python
from tests.support.requests import SQUARE, STEPS
from tests.support.threads import in_threads

NUM_CORES = len(Topology.detect().cores)


def our_threads():
    """{name: affinity} of this process's threads whose name is a context's."""
    threads = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            if name.startswith("ds"):
                threads[name] = os.sched_getaffinity(int(task.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return threads


def test_each_stream_has_a_named_pinned_worker():
    with compile_model(models.mlp(), scheduler="multi_stream", num_streams=NUM_CORES) as engine:
        threads = our_threads()
        context = next(iter(threads)).split("-")[0]
        for stream in engine.streams:
            assert threads[f"{context}-s{stream.index}"] == {stream.cpus[0]}
    assert not our_threads()


def test_orts_threads_are_named_and_pinned_inside_their_stream():
    with compile_model(models.mlp(), scheduler="single_stream") as engine:
        (stream,) = engine.streams
        threads = our_threads()
        op_threads = {name: cpus for name, cpus in threads.items() if "-op" in name}
        # One core each; the first is the worker's, or the caller's.
        assert sorted(op_threads.values()) == [{cpu} for cpu in stream.cpus[1:]]


def test_threads_of_an_unpinned_context_may_run_anywhere():
    topology = Topology.synthetic(packages=2, cores_per_l3=2)
    with Context(topology=topology, num_streams=2, pin="none") as context:
        engine = Engine(models.mlp(), context=context)
        assert len(engine.streams) == 2
        threads = our_threads()
        assert len(threads) == 2 + 2  # two workers, and a second thread for each session
        assert all(cpus == os.sched_getaffinity(0) for cpus in threads.values())


def test_a_caller_gets_its_own_affinity_back():
    allowed = sorted(os.sched_getaffinity(0))
    with Engine(models.mlp(), scheduler="multi_stream", num_streams=NUM_CORES) as engine:
        x = np.zeros((1, 64), np.float32)
        with engine.context.trace() as records:

            def work(i):
                mine = {allowed[i % len(allowed)]}
                os.sched_setaffinity(0, mine)
                for _ in range(50):
                    engine.run([x])
                    assert os.sched_getaffinity(0) == mine

            in_threads(4, work)
        assert any(not record.by_worker for record in records)
    assert sorted(os.sched_getaffinity(0)) == allowed


# --- Signals ------------------------------------------------------------------------------------


INTERRUPTED = """
    import numpy, signal, threading, time, deepsched
    from tests.support import models
    signal.signal(signal.SIGINT, signal.default_int_handler)
    engine = deepsched.Engine(models.spin(), None, scheduler="single_stream")
    square = numpy.zeros((64, 64), numpy.float32)
    def run(steps):
        return engine.run([numpy.array(steps), square])
    {before}
    print("ready", flush=True)
    started = time.monotonic()
    try:
        run(10**9)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    {after}
"""


def signal_in_wait(process, number):
    """Signals a process that has printed "ready", once it waits; returns its output."""
    assert process.stdout.readline() == "ready\n", finish(process)
    # Until it waits in the kernel: the futex that the run is waited for with.
    wchan = Path(f"/proc/{process.pid}/wchan")
    syscall = Path(f"/proc/{process.pid}/syscall")
    while not (wchan.read_text().startswith("futex") or syscall.read_text().startswith("202 ")):
        assert process.poll() is None, finish(process)
    process.send_signal(number)
    return finish(process)


def interrupt(before="", after=""):
    process = start_python(INTERRUPTED.format(before=before, after=after))
    return signal_in_wait(process, signal.SIGINT)


def test_ctrl_c_interrupts_a_running_call():
    out, err = interrupt(after="run(1); print('usable')")
    assert out == "interrupted\nusable\n", err


def test_ctrl_c_interrupts_a_call_after_many_short_ones():
    out, err = interrupt(before="for steps in (1, 2, 3) * 10: run(steps)")
    assert out == "interrupted\n", err


def test_ctrl_c_interrupts_one_long_operator_after_short_ones_with_smaller_inputs():
    process = start_python(
        """
        import signal, numpy as np
        from deepsched import Engine
        from tests.support import models
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Engine(models.gram(), None) as engine:
            small, large = np.ones((8, 8), np.float32), np.ones((3000, 3000), np.float32)
            for _ in range(10):
                engine.run([small])
            print("ready", flush=True)
            try:
                engine.run([large])
            except KeyboardInterrupt:
                print(engine.context._shared.dispatcher.num_busy)  # it goes on meanwhile
        """
    )
    out, err = signal_in_wait(process, signal.SIGINT)
    assert out == "1\n", err


def is_left_to_a_worker(engine, inputs):
    with engine.context.trace() as records:
        engine.run(inputs)
    (record,) = records
    return record.by_worker


def test_the_main_thread_runs_what_was_short_with_the_same_inputs():
    """A worker has all else: nothing in the main thread hears a signal during a run."""
    x, more, transposed = (np.full(shape, 2.0, "f4") for shape in [(2, 3), (4, 3), (3, 2)])
    with Engine(models.gram(), None) as engine:
        assert is_left_to_a_worker(engine, [x])
        assert not is_left_to_a_worker(engine, [x])
        assert is_left_to_a_worker(engine, [more])
        assert is_left_to_a_worker(engine, [transposed])
        assert not is_left_to_a_worker(engine, [x / 2])  # below its magnitude
        assert is_left_to_a_worker(engine, [x * 1000])  # six numbers may be sizes
        in_threads(1, lambda i: engine.run([np.ones((5, 5), np.float32)]))
        assert not is_left_to_a_worker(engine, [np.ones((5, 5), np.float32)])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float64, np.float16])
def test_a_larger_number_is_not_taken_for_as_short_as_a_smaller_one(dtype):
    with Engine(models.identity((1,), helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))) as engine:
        assert is_left_to_a_worker(engine, [np.array([100], dtype)])
        for number in (100, 1, 127, -50, 0):
            assert not is_left_to_a_worker(engine, [np.array([number], dtype)])
        assert is_left_to_a_worker(engine, [np.array([30_000], dtype)])
        assert not is_left_to_a_worker(engine, [np.array([127], dtype)])


def test_numbers_that_a_glance_does_not_tell_are_never_taken_for_short():
    number = np.array([1], ml_dtypes.bfloat16)
    with Engine(models.identity((1,), TensorProto.BFLOAT16)) as engine:
        for _ in range(3):
            assert is_left_to_a_worker(engine, [number])


def test_ctrl_c_is_heard_in_a_map_whose_items_were_short_so_far():
    """A map serves what waits itself, as long as that is known to be short."""
    small, large = np.ones((8, 8), np.float32), np.ones((2400, 2400), np.float32)
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic_ns()))
    streams = {"scheduler": "multi_stream", "num_streams": NUM_CORES}
    with Engine(models.gram(), None, **streams) as engine, engine.context.trace() as records:
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        try:
            for _ in range(3):
                for _ in engine.map([[small]] * 300 + [[large]]):
                    pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    for record in sorted(records, key=lambda record: record.ran_ns)[-3:]:
        assert any(record.started_ns < when < record.ended_ns for when in heard)


def test_ctrl_c_interrupts_a_queued_call():
    out, err = interrupt(
        before="""
    blocker = threading.Thread(target=run, args=(3 * 10**5,))
    blocker.start()
    while not engine.context._shared.dispatcher.num_busy: pass
    """,
        after="""
    assert blocker.is_alive()
    blocker.join()
    run(1); print('usable')
    """,
    )
    assert out == "interrupted\nusable\n", err


def test_ctrl_c_then_close_does_not_hang():
    out, err = interrupt(after="engine.close(); print('closed')")
    assert out == "interrupted\nclosed\n", err


def test_ctrl_c_then_exit_does_not_hang():
    out, err = interrupt()
    assert out == "interrupted\n", err
    assert err == ""


def test_a_signal_handler_may_close_the_engine_a_call_waits_on():
    process = start_python(
        """
        import signal, numpy as np
        from deepsched import Context, Engine
        from deepsched.errors import ClosedError
        from tests.support import models
        from tests.support.requests import LONG, SQUARE, STEPS, run_until_busy

        with Context(num_streams=1, queue_capacity=1) as context:
            engine = Engine(models.spin(), None, context=context)
            futures = [run_until_busy(engine), engine.submit([STEPS, SQUARE])]

            def close(*_):
                futures[0].cancel()
                engine.close()

            signal.signal(signal.SIGALRM, close)
            print("ready", flush=True)
            try:
                engine.run([STEPS, SQUARE])
            except ClosedError:
                print("closed")
        """
    )
    out, err = signal_in_wait(process, signal.SIGALRM)
    assert out == "closed\n", err


# --- fork ---------------------------------------------------------------------------------------


def in_child(work):
    """Runs `work` in a forked child and returns what it sent back; a hang is a failure."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            message = work()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writer, str(message).encode())
        os._exit(0)
    os.close(writer)
    killer = threading.Timer(60, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with os.fdopen(reader) as file:
        message = file.read()
    os.waitpid(pid, 0)
    killer.cancel()
    return message


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream"])
def test_a_forked_child_raises_and_the_parent_goes_on(scheduler):
    with Engine(models.spin(), None, scheduler=scheduler) as engine:
        stop = threading.Event()

        def load():
            while not stop.is_set():
                engine.run([STEPS, SQUARE])

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child():
            answer = ""
            try:
                engine.run([STEPS, SQUARE])
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            engine.close()
            engine.context.close()
            return answer

        def child_with_its_own():
            with Engine(models.spin(), None, scheduler=scheduler) as own:
                return own.run([STEPS, SQUARE])[0].shape

        for _ in range(10):
            assert in_child(child).startswith("ForkError: this engine was made before os.fork()")
            assert in_child(child_with_its_own) == "(64, 64)"
        stop.set()
        for thread in threads:
            thread.join()
        assert engine.run([STEPS, SQUARE])[0].shape == (64, 64)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_an_engine_opens_can_open_one(monkeypatch, tmp_path):
    slow = models.save(models.spin(), tmp_path, "slow.onnx")
    fast = models.save(models.spin(), tmp_path, "fast.onnx")
    is_opening, may_go_on = threading.Event(), threading.Event()

    def prepare(model, *arguments, **options):
        if model == slow:
            is_opening.set()
            may_go_on.wait(60)
        return prepare_model(model, *arguments, **options)

    monkeypatch.setattr(compiled, "prepare_model", prepare)

    def open_and_run(path):
        with Engine(path) as engine:
            return engine.run([STEPS, SQUARE])[0].shape

    opening = threading.Thread(target=open_and_run, args=(slow,))
    opening.start()
    is_opening.wait(60)
    assert in_child(lambda: open_and_run(fast)) == "(64, 64)"
    assert open_and_run(fast) == (64, 64)  # nor does this process wait
    may_go_on.set()
    opening.join()


def test_a_forked_child_exits_without_a_hang():
    process = start_python(
        """
        import numpy, os, sys, warnings, deepsched
        from tests.support import models
        warnings.simplefilter("ignore")
        engine = deepsched.Engine(models.mlp())
        x = numpy.zeros((1, 64), numpy.float32)
        (y,) = engine.run([x])
        pid = os.fork()
        if pid == 0:
            del y
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        engine.run([x])
        print("done")
        """
    )
    out, err = finish(process)
    assert out == "done\n", err


# --- Exit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "sys.exit()", "raise SystemExit", "del engine"])
def test_exit_with_requests_in_flight_neither_hangs_nor_crashes(ending):
    process = start_python(
        f"""
        import numpy, sys, threading, deepsched
        from tests.support import models
        engine = deepsched.Engine(models.spin(), None, scheduler="multi_stream")
        square = numpy.zeros((64, 64), numpy.float32)
        started = threading.Semaphore(0)
        def load(engine):
            try:
                while True:
                    engine.run([numpy.array(1000), square])
                    started.release()
            except deepsched.errors.ClosedError:
                pass
        for _ in range(6):
            threading.Thread(target=load, args=(engine,), daemon=True).start()
        for _ in range(20):
            started.acquire()
        print("leaving", flush=True)
        {ending}
        """
    )
    out, err = finish(process)
    assert (process.returncode, out) == (0, "leaving\n"), err


@pytest.mark.parametrize("how", ["submit", "run_async", "map", "run"])
def test_the_interpreter_may_end_with_requests_under_way(how):
    code = f"""
        import asyncio, itertools, threading
        import numpy as np
        from deepsched import compile_model
        from tests.support import models

        engine = compile_model(models.spin(), None, scheduler="multi_stream", num_streams=1)
        inputs = [np.array(3000, np.int64), np.zeros((64, 64), np.float32)]
        engine.run(inputs)
        if {how!r} == "submit":
            futures = [engine.submit(inputs) for _ in range(20)]
        elif {how!r} == "run_async":
            async def main():
                tasks = [asyncio.ensure_future(engine.run_async(inputs)) for _ in range(20)]
                await asyncio.sleep(0)
            asyncio.run(main())
        elif {how!r} == "map":
            results = engine.map(itertools.repeat(inputs))
            next(results)
        else:
            for _ in range(4):
                threading.Thread(
                    target=lambda: [engine.run(inputs) for _ in range(1000)], daemon=True
                ).start()
            engine.run(inputs)
        print("ends")
    """
    assert run_python(code) == "ends\n"
