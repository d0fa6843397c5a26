"""Traces: what is in them, and the timelines and pictures that are made of them."""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import threading
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import Context, Engine, Scheduler, Topology, partition
from deepsched.cli import main
from deepsched.errors import (
    ClosedError,
    DeadlineExceeded,
    ForkError,
    InferenceError,
    OptionError,
)
from deepsched.runtime.inbox import Inbox
from deepsched.timeline import RequestRecord, Trace
from deepsched.timeline.levels import busy_cores, levels, queue_depth
from deepsched.timeline.perfetto import to_perfetto
from deepsched.timeline.svg import draw
from deepsched.timeline.text import render
from deepsched.timeline.window import windows
from tests.support import models
from tests.support.requests import LONG

X = np.zeros((1, 64), np.float32)
MACHINE = Topology.synthetic(packages=1, cores_per_l3=4)
STREAMS = partition(MACHINE, num_streams=4).streams


def context_of(num_streams=2, scheduler="multi_stream", **options):
    return Context(
        topology=MACHINE, num_streams=num_streams, scheduler=scheduler, pin="none", **options
    )


def trace_of(*records, seconds=1.0, streams=STREAMS):
    trace = Trace(Scheduler.elastic, streams, 0, int(seconds * 1e9))
    trace._records.extend(records)
    return trace


def record(submitted, started, ended, stream=0, width=1, **other):
    values = {
        "model": "a",
        "batch_size": 1,
        "outcome": "done",
        "by_worker": True,
        "num_together": int(started is not None),
        **other,
    }
    return RequestRecord(
        **values,
        stream=stream,
        num_streams=width,
        submitted_ns=submitted,
        started_ns=started,
        ended_ns=ended,
    )


# --- What is collected --------------------------------------------------------------------------


def test_every_way_in_is_traced_with_its_model_and_its_times_in_order():
    with context_of() as context:
        a = Engine(models.mlp(), context=context)
        b = Engine(models.mlp(), 2, context=context)
        a.run([X])  # the main thread leaves a model's first run to a worker
        with context.trace() as trace:
            a.run([X])
            a.submit([X]).result()
            list(a.map([[X]] * 3))
            b.run([np.zeros((2, 64), np.float32)])
        a.run([X])  # after it
    assert len(trace) == 6
    assert Counter(it.batch_size for it in trace) == {1: 5, 2: 1}
    for it in trace:
        assert (it.model, it.outcome, it.num_streams) == ("model", "done", 1)
        assert trace.began_ns <= it.submitted_ns <= it.started_ns <= it.ended_ns <= trace.ended_ns
        assert it.waited_ns + it.ran_ns == it.ended_ns - it.submitted_ns
    assert [it.submitted_ns for it in trace] == sorted(it.submitted_ns for it in trace)
    assert not trace[0].by_worker


def test_what_failed_and_what_never_ran_is_traced_too():
    with context_of(1) as context:
        gather = Engine(models.gather(), None, context=context)
        spin = Engine(models.spin(), None, context=context)
        with context.trace() as trace:
            with pytest.raises(InferenceError):
                gather.run([X[0], np.array([64], np.int64)])
            running = spin.submit(LONG)
            while not running.running():
                pass
            waiting = spin.submit(LONG)
            with pytest.raises(DeadlineExceeded):
                spin.run(LONG, timeout=0.01)
            assert waiting.cancel()
            assert running.cancel()
            spin.submit([np.array(1, np.int64), LONG[1]]).result()  # the others have ended
    ends = [(it.outcome, it.started_ns is not None) for it in trace]
    assert Counter(ends) == {
        ("failed", True): 1,
        ("cancelled", True): 1,
        ("cancelled", False): 1,
        ("expired", False): 1,
        ("done", True): 1,
    }
    for it in trace:
        assert (it.stream is None) == (it.num_streams == 0) == (it.started_ns is None)
        assert it.ended_ns >= it.submitted_ns > 0


def test_wide_runs_say_which_streams_they_took():
    with context_of(4, "elastic") as context:
        engine = Engine(models.mlp(), None, context=context)
        engine._model.set_run_ns([4000] * 4 + [2000] * 2 + [1000])
        with context.trace() as trace:
            for _ in range(20):
                engine.run([X])
    for it in trace:
        assert (it.stream, it.num_streams) in {*((i, 1) for i in range(4)), (0, 2), (2, 2), (0, 4)}
        assert trace.num_cores(it) == it.num_streams
    assert any(it.num_streams == 4 for it in trace)


def test_a_full_trace_counts_what_it_has_no_room_for():
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)
        with context.trace(capacity=3) as trace:
            for _ in range(10):
                engine.run([X])
    assert len(trace) == 3
    assert trace.num_dropped == 7


def test_one_trace_at_a_time_and_another_after_it():
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)
        with context.trace() as first:
            with pytest.raises(OptionError, match="one trace at a time"), context.trace():
                pass
            engine.run([X])
        with context.trace() as second:
            engine.run([X])
            engine.run([X])
        assert (len(first), len(second)) == (1, 2)
        with pytest.raises(OptionError, match="capacity must be"), context.trace(capacity=0):
            pass


def test_engines_that_come_and_go_during_a_trace_are_in_it(tmp_path):
    path = tmp_path / "coming.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    with context_of() as context:
        with context.trace() as trace, Engine(str(path), context=context) as engine:
            engine.run([X])
        assert [it.model for it in trace] == ["coming"]


def test_traces_that_begin_and_end_under_load_lose_nothing_in_between():
    """Eight threads run; the main one starts and stops traces. What a thread ran wholly within a
    trace must be in it; the trace's own count of places must add up."""
    with context_of(2) as context:
        engine = Engine(models.mlp(), None, context=context)
        stop = threading.Event()
        counts = [0] * 8

        def work(i):
            while not stop.is_set():
                engine.run([X])
                counts[i] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                with context.trace(capacity=50) as trace:
                    before = sum(counts)
                    while sum(counts) < before + 30:
                        pass
                    within = sum(counts) - before
                # Each thread may have counted one that ended before the trace began.
                assert len(trace) + trace.num_dropped >= within - 8
                assert len(trace) <= 50
                assert all(it.ended_ns >= it.started_ns > 0 for it in trace)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_traces_that_end_as_others_begin_know_every_engine(tmp_path):
    """Two threads trace in turn, as a third opens, uses and closes engines."""
    path = tmp_path / "mlp.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failures = []
    with context_of() as context:
        stop = threading.Event()

        def trace():
            while not stop.is_set():
                try:
                    with context.trace(capacity=1000) as found:
                        context.stats()
                except OptionError:  # the other one traces
                    continue
                except Exception as error:
                    failures.append(error)
                    return
                failures.extend(it for it in found if it.model != "mlp")

        threads = [threading.Thread(target=trace) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                with Engine(str(path), context=context) as engine:
                    for _ in range(20):
                        engine.run([X])
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)
        context._shared.registry.retain_names()
        assert context._shared.registry.release_names() == {}  # nothing is kept of closed engines
    assert failures == []


def test_an_engine_that_is_being_collected_is_known_by_name():
    with context_of(1) as context:
        engine = Engine(models.spin(), None, context=context)
        engine.itself = engine  # only the garbage collector can take it
        running = engine.submit(LONG)
        while not running.running():
            pass
        waiting = engine.submit(LONG)
        model = engine._model
        del engine
        collector = threading.Thread(target=gc.collect)
        collector.start()
        while True:  # until it is being closed
            try:
                model.run(LONG, timeout=0)
            except ClosedError:
                break
            except DeadlineExceeded:
                continue
        with context.trace() as trace:
            running.cancel()
            collector.join()
            with pytest.raises(ClosedError):
                waiting.result()
    assert [it.model for it in trace] == ["model"] * len(trace)
    assert len(trace) >= 1


def test_a_trace_that_was_left_open_ends_with_the_garbage_at_whatever_moment():
    """The collector may end it while another begins."""
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)
        threshold = gc.get_threshold()
        try:
            gc.set_threshold(3)
            for _ in range(200):
                left = [context.trace()]
                left[0].__enter__()
                left.append(left)
                del left
                for _ in range(50):  # as soon as the collector has been here
                    try:
                        with context.trace() as trace:
                            engine.run([X])
                    except OptionError:
                        [[] for _ in range(10)]
                        continue
                    assert len(trace) == 1
                    break
                else:
                    raise AssertionError("the trace that was left open did not end")
        finally:
            gc.set_threshold(*threshold)


def test_ctrl_c_as_a_trace_begins_leaves_none_under_way(monkeypatch):
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)
        with monkeypatch.context() as patch:
            patch.setattr("deepsched.context.time.monotonic_ns", interrupted_at(2))
            with pytest.raises(KeyboardInterrupt), context.trace():
                pass
        with context.trace() as trace:
            engine.run([X])
        assert len(trace) == 1


def interrupted_at(call):
    calls = itertools.count(1)

    def monotonic_ns():
        if next(calls) == call:
            raise KeyboardInterrupt
        return 0

    return monotonic_ns


def test_a_child_that_leaves_a_trace_waits_for_nobody():
    """Another thread of the parent may hold any lock when it forks."""
    held, done = threading.Event(), threading.Event()
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)

        def hold():
            with context._shared.registry._lock:
                held.set()
                done.wait()

        with context.trace() as trace:
            engine.run([X])
            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            child = os.fork()
            if child:
                status = os.waitpid(child, 0)[1]
                done.set()
                holder.join()
        if child == 0:
            try:
                context.stats()
            except ForkError:
                os._exit(len(trace))
            os._exit(1)
        assert status == 0
        assert len(trace) == 1


def test_requests_that_still_wait_when_a_trace_ends_are_counted():
    with context_of(1) as context:
        engine = Engine(models.spin(), None, context=context)
        with context.trace() as trace:
            running = engine.submit(LONG)
            while not running.running():
                pass
            waiting = [engine.submit(LONG) for _ in range(3)]
        assert (len(trace), trace.num_waiting) == (0, 3)
        for future in (*waiting, running):
            future.cancel()


def test_a_child_process_leaves_its_parents_trace_alone():
    with context_of() as context:
        engine = Engine(models.mlp(), None, context=context)
        with context.trace() as trace:
            engine.run([X])
            child = os.fork()
            if child == 0:
                os._exit(0 if context._shared.dispatcher.tracer.stop(trace) == (b"", 0) else 1)
            assert os.waitpid(child, 0)[1] == 0
            engine.run([X])
        assert len(trace) == 2


def test_requests_refused_by_a_closing_engine_are_traced_as_closed():
    with context_of(1) as context:
        spin = Engine(models.spin(), None, context=context)
        mlp = Engine(models.mlp(), None, context=context)
        inbox = Inbox()
        with context.trace() as trace:
            running = spin.submit(LONG)
            while not running.running():
                pass
            mlp._model.start([X], inbox)
            closing = threading.Thread(target=mlp.close)
            closing.start()
            # The closer has said so before it waits for what is queued.
            while not _is_closing(mlp):
                pass
            running.cancel()
            closing.join()
        assert [it.started_ns for it in trace if it.outcome == "closed"] == [None]


def _is_closing(engine):
    try:
        engine.run([X], timeout=0)
    except ClosedError:
        return True
    except DeadlineExceeded:
        return False


# --- Levels -------------------------------------------------------------------------------------

spans = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(1, 5)).map(
        lambda it: (min(it[:2]), max(it[:2]), it[2])
    )
)


@given(spans)
def test_levels_are_the_sums_at_every_moment(given_spans):
    found = levels(given_spans)
    for moment in range(102):
        level = next((level for time, level in reversed(found) if time <= moment), 0)
        assert level == sum(weight for begin, end, weight in given_spans if begin <= moment < end)
    assert all(a[1] != b[1] for a, b in zip(found, found[1:], strict=False))


def test_queue_depth_and_busy_cores_of_a_trace():
    trace = trace_of(
        record(0, 10, 30, 0, 2),
        record(5, 30, 40, 1),
        record(6, None, 20, None, 0, outcome="cancelled"),
    )
    assert queue_depth(trace) == [(0, 1), (5, 2), (6, 3), (10, 2), (20, 1), (30, 0)]
    assert busy_cores(trace) == [(10, 2), (30, 1), (40, 0)]


# --- The timeline -------------------------------------------------------------------------------


def test_the_timeline_has_a_row_for_each_stream_and_group_and_a_slice_for_each_run():
    trace = trace_of(record(0, 10_000, 30_000, 0, 2), record(5000, 30_000, 40_000, 1))
    timeline = json.loads(json.dumps(to_perfetto([trace, trace])))
    events = timeline["traceEvents"]
    rows = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert rows[:5] == [*(f"stream {i}, CPUs {i}" for i in range(4)), "streams 0 to 1"]
    slices = [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    # The wide run: in both streams, and in its group.
    assert slices[:4] == [(2, 0, 10, 20), (2, 1, 10, 20), (3, 0, 10, 20), (2, 1, 30, 10)]
    assert {pid for pid, *_ in slices[4:]} == {6, 7}  # the second trace, beside it
    # Local to its trace, by the pid: the other one's requests have the same numbers.
    begins = [(e["pid"], e["ts"], e["id2"]["local"]) for e in events if e["ph"] == "b"]
    ends = [(e["pid"], e["ts"], e["id2"]["local"]) for e in events if e["ph"] == "e"]
    assert begins == [(4, 0, "0x0"), (4, 5, "0x1"), (8, 0, "0x0"), (8, 5, "0x1")]
    assert ends == [(4, 10, "0x0"), (4, 30, "0x1"), (8, 10, "0x0"), (8, 30, "0x1")]
    depth = [e["args"] for e in events if e["ph"] == "C" and e["pid"] == 1]
    assert max(args.get("requests waiting", 0) for args in depth) == 2
    assert max(args.get("busy cores", 0) for args in depth) == 2


def test_what_waited_before_the_trace_began_is_not_before_the_timeline_begins():
    trace = trace_of(record(-9000, 4000, 5000), record(1000, 5000, 6000))
    events = to_perfetto([trace])["traceEvents"]
    times = [(e["ph"], e["ts"]) for e in events if "ts" in e]
    assert min(ts for _, ts in times) == 0
    assert [ts for ph, ts in times if ph == "X"] == [13, 14]


# --- The picture --------------------------------------------------------------------------------


def _boxes(svg):
    return [
        element
        for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if element.find("{http://www.w3.org/2000/svg}title") is not None
    ]


def test_the_picture_has_a_box_for_each_run_across_the_cores_that_it_took():
    trace = trace_of(
        record(0, 0, 10, 0, 4, model="<a&b>"), record(0, 10, 20, 0), record(0, 10, 20, 1)
    )
    wide, left, right = _boxes(draw([trace]))
    assert float(wide.get("height")) > 3.5 * float(left.get("height"))
    assert float(left.get("y")) < float(right.get("y"))
    assert left.get("x") == right.get("x")
    assert "<a&b>" in wide[0].text


@pytest.mark.parametrize("num_cores", [1, 4, 128])
def test_pictures_of_machines_of_any_size_keep_within_their_frame(num_cores):
    streams = partition(Topology.synthetic(cores_per_l3=num_cores), num_streams=num_cores).streams
    runs = [record(0, 10 * k, 10 * k + 10, i) for i in range(num_cores) for k in range(9)]
    svg = draw([trace_of(*runs, streams=streams)])
    root = ET.fromstring(svg)
    assert float(root.get("height")) < 900
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        right = float(element.get("x", 0)) + float(element.get("width"))
        assert right <= float(root.get("width")) + 0.1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6), st.integers(0, 10**4), st.integers(1, 10**5) | st.just(10**17)
        ),
        max_size=30,
    ),
    st.integers(20, 200),
)
def test_any_trace_can_be_drawn(times, width):
    runs = [record(t, t + wait, t + wait + run, i % 4) for i, (t, wait, run) in enumerate(times)]
    trace = trace_of(*sorted(runs, key=lambda it: it.submitted_ns))
    assert len(_boxes(draw([trace]))) == len(windows([trace])[0].runs())
    assert bool(windows([trace])[0].runs()) == bool(runs)
    for line in render([trace], width).splitlines()[1:]:
        assert len(line) <= max(width, 40)


def test_requests_that_ran_together_are_one_run():
    together = [record(k, 10, 30, num_together=3) for k in range(3)]
    trace = trace_of(*together, record(5, 30, 40), seconds=1e-7)
    assert trace.batches == {0: [0, 1, 2], 3: [3]}
    assert busy_cores(trace) == [(10, 1), (40, 0)]
    slices = [event for event in to_perfetto([trace])["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["a × 3", "a"]
    assert slices[0]["args"]["requests"] == [0, 1, 2]
    assert "[0+2──" in render([trace])
    assert "requests 0, 1, 2 together" in draw([trace])


def test_characters_show_serial_and_side_by_side():
    one = partition(MACHINE, num_streams=1).streams
    serial = trace_of(*(record(0, 10 * k, 10 * k + 10) for k in range(12)), streams=one)
    both = trace_of(*(record(0, 20 * (k // 2), 20 * (k // 2) + 20, k % 2) for k in range(12)))
    text = render([serial, both], 80)
    assert "[6──" in text.splitlines()[1]
    assert "4 cores" in text.splitlines()[1]
    rows = [line for line in text.splitlines() if line.startswith("stream")]
    assert len(rows) == 1 + 4
    assert rows[1].index("[6") == rows[2].index("[7")


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def mlp(tmp_path):
    path = tmp_path / "mlp.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    return str(path)


@pytest.mark.field
def test_the_command_draws_both_schedulers_and_writes_the_files(mlp, tmp_path, capsys):
    timeline, picture = tmp_path / "trace.json", tmp_path / "trace.svg"
    args = ["trace", mlp, "-t", "0.1", "-q", "-o", str(timeline), "--svg", str(picture)]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "single_stream, 1 stream:" in out and "multi_stream, " in out
    names = [
        e["args"]["name"]
        for e in json.loads(timeline.read_text())["traceEvents"]
        if e["name"] == "process_name"
    ]
    assert "single_stream: streams" in names and "multi_stream: streams" in names
    assert _boxes(picture.read_text())
    assert main(["trace", mlp, "-t", "0.05", "-q", "-s", "elastic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["otherData"]["dropped"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["-t", "0"], "--seconds must be positive"),
        (["--poisson"], "give --rate"),
        (["-s", "fastest"], "fastest"),
        (["-o", "/nowhere/x.json"], "cannot write --output"),
        (["--svg", "/nowhere/x.svg"], "cannot write --svg"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(mlp, options, message, capsys):
    assert main(["trace", mlp, "-q", *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
