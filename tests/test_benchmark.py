"""Measuring: loads, other engines, sweeps and searches; on a clock that moves when it is told to,
where times matter."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import sys
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched import Engine
from deepsched.benchmark import (
    FIELDS,
    Asked,
    arrival_times_ns,
    combinations,
    measure,
    open_engine,
    report,
    search_rate,
    sweep,
)
from deepsched.benchmark.engines import EngineSetting
from deepsched.benchmark.load import MonotonicClock, open_loop
from deepsched.benchmark.percentiles import latency_percentile
from deepsched.benchmark.report import SEARCH_FIELDS
from deepsched.benchmark.search import highest_rate
from deepsched.cli import main
from deepsched.cli.benchmark_text import print_report, print_sweep
from deepsched.errors import OptionError, ShapeOverrideError, UnsupportedModelError
from deepsched.machine.cgroup import throttled_seconds
from deepsched.models.prepare import sequence_shapes
from deepsched.runtime.histogram import RELATIVE_WIDTH, bucket_bounds, bucket_index
from deepsched.scheduler import Scheduler
from deepsched.scheduling.stats import Counts
from tests.support import models
from tests.support.sysfs_tree import SysfsTree

MS = 1_000_000


class ManualClock:
    """Time passes only in requests, and where somebody waits for it. For one caller."""

    def __init__(self):
        self.time_ns = 0

    def now_ns(self):
        return self.time_ns

    def wait_until(self, due_ns, stop):
        self.time_ns = max(self.time_ns, due_ns)


class FakeEngine:
    """Takes as long as `service_ms` says for each request, of its clock."""

    batch_size = 1
    num_streams = 1
    num_cores = 1

    def __init__(self, clock, service_ms):
        self.clock = clock
        self.service_ms = iter(service_ms)

    def run(self, inputs):
        self.clock.time_ns += round(next(self.service_ms) * MS)

    def generate_random_inputs(self):
        return []

    def close(self):
        pass


def load_fake(service_ms, **options):
    clock = ManualClock()
    engine = FakeEngine(clock, service_ms)
    return measure(engine, callers=1, warmup_seconds=0, clock=clock, **options)


# --- When requests fall due ---------------------------------------------------------------------

rates = st.floats(0.5, 1e5)


@given(rates, st.floats(0.01, 0.2), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=50)
def test_arrivals_are_in_order_and_within_the_time(rate, seconds, poisson, seed):
    times = list(arrival_times_ns(rate, seconds, poisson=poisson, seed=seed))
    assert times == sorted(times)
    assert all(0 <= due < seconds * 1e9 for due in times)
    assert times == list(arrival_times_ns(rate, seconds, poisson=poisson, seed=seed))


@given(rates, st.floats(0.01, 0.2))
@settings(max_examples=50)
def test_even_arrivals_are_evenly_spaced_and_as_many_as_the_rate_says(rate, seconds):
    times = list(arrival_times_ns(rate, seconds))
    assert times[0] == 0
    assert abs(len(times) - rate * seconds) <= 1
    for due, number in zip(times, itertools.count()):
        assert due == pytest.approx(number * 1e9 / rate, abs=1)


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process(seed):
    times = np.array(list(arrival_times_ns(1000, 10, poisson=True, seed=seed)))
    assert abs(len(times) - 10_000) < 6 * math.sqrt(10_000)
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)


# --- What is measured ---------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=20, max_size=20))
def test_open_loop_latency_counts_from_the_time_that_a_request_was_due(service_ms):
    result = load_fake(service_ms, rate=100, seconds=0.2, max_late_seconds=10)
    expected, free = [], 0
    for number, service in enumerate(service_ms):
        free = max(free, 10 * number) + service  # due every 10 ms; one caller, first in first out
        expected.append(free - 10 * number)
    assert sorted(result.latencies_ms) == pytest.approx(sorted(expected))
    assert result.items_per_sec == pytest.approx(20 / (max(200, free) / 1000))


def test_a_stall_is_seen_by_all_that_it_delays_and_by_one_in_a_closed_loop():
    services = [500, *[1] * 100_000]
    delayed = load_fake(services, rate=100, seconds=1)
    assert (delayed.latencies_ms > 100).sum() > 40  # 500 ms: 50 fell due meanwhile
    closed = load_fake(services, seconds=1)
    assert (closed.latencies_ms > 100).sum() == 1
    assert delayed.send_delays_ms.max() == pytest.approx(490)


@pytest.mark.parametrize("warmup_seconds", [0, 0.05, 1])
def test_the_rate_of_few_requests_is_exact(warmup_seconds):
    """In 0.4 s end 2 requests of 191 ms, or 3: over 0.4 s, 5 or 7.5 in a second."""
    clock = ManualClock()
    engine = FakeEngine(clock, itertools.repeat(191))
    result = measure(engine, callers=1, seconds=0.4, warmup_seconds=warmup_seconds, clock=clock)
    assert result.iterations in (2, 3)
    assert result.items_per_sec == pytest.approx(1000 / 191)


def test_an_overload_drops_what_is_too_late_and_ends():
    result = load_fake(itertools.repeat(20), rate=100, seconds=10, max_late_seconds=0.5)
    assert result.iterations + result.num_dropped == 1000
    assert result.latencies_ms.max() <= 520
    assert result.items_per_sec == pytest.approx(50, rel=0.01)
    assert result.seconds <= 10.52


class CountingClock(ManualClock):
    """Looking at it takes 1 us, so that what a load does beside its requests shows."""

    def now_ns(self):
        self.time_ns += 1000
        return self.time_ns


@pytest.mark.parametrize("poisson", [False, True])
def test_a_load_far_beyond_the_machine_takes_no_longer_than_another(poisson):
    """Each request that is dropped on its own would take 1 us at least: 5 s in all."""
    clock = CountingClock()
    result = measure(
        FakeEngine(clock, itertools.repeat(1)),
        rate=1e7,
        seconds=0.5,
        callers=1,
        warmup_seconds=0,
        clock=clock,
        poisson=poisson,
    )
    assert result.seconds < 1.01
    assert result.iterations == pytest.approx(1000, rel=0.02)
    due = result.iterations + result.num_dropped
    assert due == len(list(arrival_times_ns(1e7, 0.5, poisson=poisson)))
    assert not result.keeps_up


@pytest.mark.parametrize("poisson", [False, True])
@pytest.mark.parametrize("share", [0.8, 0.95, 1.1, 1.25])
@pytest.mark.parametrize("seed", range(5))
def test_an_engine_keeps_up_below_what_it_can_do(poisson, share, seed):
    rate = share * 500  # of 500 requests a second
    result = load_fake(itertools.repeat(2), rate=rate, seconds=20, poisson=poisson, seed=seed)
    assert result.num_dropped == 0
    assert result.keeps_up == (share < 1)


def test_a_stall_that_is_caught_up_with_is_keeping_up():
    for stalled in range(500, 9000, 1000):
        services = [2.0] * 9000
        services[stalled] = 300.0
        assert load_fake(services, rate=425, seconds=20).keeps_up


def test_requests_that_take_longer_than_the_load_show_no_rate():
    assert not load_fake([5000], rate=1, seconds=1).keeps_up
    assert load_fake([400], rate=1, seconds=1).keeps_up
    assert load_fake([400] * 3, seconds=1).keeps_up  # a closed loop


def test_what_an_open_loop_measured_is_in_the_order_that_requests_fell_due():
    times = open_loop(
        lambda x: None,
        None,
        rate=2000,
        poisson=False,
        seed=0,
        callers=4,
        seconds=0.2,
        max_late_seconds=60,
        clock=MonotonicClock(),
        on_tick=lambda now_ns: None,
    )
    assert len(times) == 400
    assert np.all(np.diff(times.arrived) > 0)


def test_the_warm_up_of_an_open_loop_leaves_no_backlog():
    services = [1000] * 3 + [1] * 10_000
    clock = ManualClock()
    result = measure(
        FakeEngine(clock, services),
        rate=10,
        callers=1,
        seconds=1,
        warmup_seconds=3,
        clock=clock,
        max_late_seconds=0,
    )
    assert result.latencies_ms == pytest.approx(np.ones(10))


def test_one_caller_fewer_than_requests_under_way_is_all_that_is_needed():
    calls = itertools.count()
    result = measure(lambda x: next(calls), rate=2000, seconds=0.1, warmup_seconds=0, callers=4)
    assert result.iterations + result.num_dropped == 200
    assert next(calls) == result.iterations


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0},
        {"rate": math.inf},
        {"callers": 0},
        {"poisson": True},
        {"seconds": 0},
        {"warmup_seconds": -1},
        {"rate": 1, "max_late_seconds": -1},
        {"rate": 1e9},
        {"rate": 1, "poisson": True, "seed": -1},
        {"rate": math.nan},
    ],
)
def test_a_load_that_cannot_be_is_refused(options):
    with pytest.raises(OptionError, match=r"got|needs"):
        measure(sum, [1], **options)


def test_what_raises_in_an_open_loop_is_raised():
    with pytest.raises(ZeroDivisionError):
        measure(lambda x: 1 // x, 0, rate=1000, seconds=60, warmup_seconds=0)


def test_the_engines_counts_are_of_the_time_measured():
    with Engine(models.mlp(), 2) as engine:
        measure(engine, seconds=0.05, warmup_seconds=0, rate=1000)
        result = measure(engine, seconds=0.05, warmup_seconds=0.05, rate=1000, max_late_seconds=60)
    assert result.iterations == 50
    assert result.stats.done == sum(stream.done for stream in result.stats.streams) == 50
    assert result.stats.running.count == 50
    assert result.batch_size == 2
    assert result.cpu_seconds_per_item == pytest.approx(result.usage.cpu_seconds / 100)
    assert result.usage.peak_memory_bytes > 1_000_000


values_ns = st.lists(st.integers(1, 10**10), min_size=1, max_size=50)


@given(values_ns, values_ns)
def test_counts_since_an_earlier_moment_are_those_of_what_came_after(before, after):
    def counts(values):
        buckets = np.zeros(len(bucket_bounds()), np.uint64)
        for value in values:
            buckets[bucket_index(value)] += 1
        snapshot = (buckets.tobytes(), sum(values), max(values))
        result = Counts(1)
        group = (len(values), 0, 0, 0, 0, snapshot, snapshot, sum(values), ())
        result.add(([group], (0, 0, 0)))
        return result

    since = counts(before + after).since(counts(before)).summary(1.0, 0, 0, 1)
    alone = counts(after).summary(1.0, 0, 0, 1)
    assert since.done == alone.done
    assert since.running.mean == pytest.approx(alone.running.mean)
    assert since.running.p90 == pytest.approx(alone.running.p90, rel=RELATIVE_WIDTH)
    assert alone.running.max <= since.running.max <= alone.running.max * (1 + RELATIVE_WIDTH) + 1e-9


def test_throttled_time_is_read_from_version_2_and_version_1(tmp_path):
    two = SysfsTree(tmp_path / "two")
    two.add_mount("cgroup2", "/sys/fs/cgroup")
    two.write("proc/self/cgroup", "0::/job/step")
    two.write("sys/fs/cgroup/job/step/cpu.stat", "usage_usec 9\nthrottled_usec 2500000")
    two.write("sys/fs/cgroup/job/cpu.stat", "nr_throttled 3\nthrottled_usec 1000000")
    assert throttled_seconds(two.root) == (2.5, 1.0)
    one = SysfsTree(tmp_path / "one")
    one.add_mount("cgroup", "/sys/fs/cgroup/cpu", "rw,cpu,cpuacct")
    one.write("proc/self/cgroup", "3:cpu,cpuacct:/job")
    one.write("sys/fs/cgroup/cpu/job/cpu.stat", "nr_periods 1\nthrottled_time 1500000000")
    assert throttled_seconds(one.root) == (1.5,)
    assert throttled_seconds(SysfsTree(tmp_path / "none").root) == ()


# --- The highest rate ---------------------------------------------------------------------------


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), st.floats(0.01, 0.5))
def test_the_search_ends_close_below_the_capacity(capacity, first, precision):
    tried = []

    def holds(rate):
        tried.append(rate)
        return rate <= capacity

    found = highest_rate(holds, first, lowest=0.001, precision=precision)
    if math.ldexp(first, 23) > capacity > math.ldexp(first, -22):
        assert capacity / (1 + precision) * 0.999 <= found <= capacity
    assert found == max((rate for rate in tried if rate <= capacity), default=0.0)


@pytest.mark.parametrize("service_ms", [10, 2])
def test_search_finds_the_rate_that_an_engine_of_known_capacity_sustains(service_ms):
    clock = ManualClock()
    engine = FakeEngine(clock, itertools.repeat(service_ms))
    found = search_rate(
        engine,
        p99_limit_ms=3 * service_ms,
        precision=0.02,
        callers=1,
        seconds=20,
        warmup_seconds=0,
        clock=clock,
    )
    capacity = 1000 / service_ms
    assert found.rate == pytest.approx(capacity, rel=0.03)
    assert found.closed_loop_rate == pytest.approx(capacity, rel=0.01)
    assert found.measurement.rate == found.rate
    assert found.measurement.percentile(99) <= 3 * service_ms
    assert {step.is_held for step in found.steps} == {True, False}


def test_a_rate_that_only_a_short_load_makes_look_good_does_not_hold():
    """Of 3600 requests in a second the last waits for 3 s, within the limit."""
    clock = ManualClock()
    engine = FakeEngine(clock, itertools.repeat(1))
    found = search_rate(engine, p99_limit_ms=3000, callers=1, seconds=1, clock=clock)
    assert found.rate == pytest.approx(1000, rel=0.06)
    assert any(step.p99_ms <= 3000 and not step.keeps_up for step in found.steps)
    assert all(step.is_held <= step.keeps_up for step in found.steps)


def test_search_reports_none_where_no_rate_holds():
    clock = ManualClock()
    engine = FakeEngine(clock, itertools.repeat(10))
    found = search_rate(engine, p99_limit_ms=5, callers=1, seconds=4, clock=clock)
    assert found.rate == 0.0
    assert found.measurement is None
    assert found.lowest_rate == 75
    assert all(step.num_requests >= 300 for step in found.steps)
    assert not any(step.is_held for step in found.steps)


def test_search_refuses_a_p99_of_few_requests():
    clock = ManualClock()
    engine = FakeEngine(clock, itertools.repeat(200))
    options = {"p99_limit_ms": 900, "callers": 1, "warmup_seconds": 0, "clock": clock}
    with pytest.raises(OptionError, match="p99 takes 300 requests.*seconds=120") as told:
        search_rate(engine, seconds=10, **options)
    assert "--seconds 120" in str(told.value)
    assert search_rate(engine, seconds=120, **options).rate == pytest.approx(5, rel=0.06)


# --- Percentiles --------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 1e4), min_size=1), st.integers(0, 50), st.integers(0, 100))
def test_dropped_requests_are_late_in_every_percentile(latencies_ms, num_dropped, percent):
    found = latency_percentile(latencies_ms, num_dropped, percent)
    late = [*latencies_ms, *[1e9] * num_dropped]
    expected = np.percentile(late, percent)
    assert found == (math.inf if expected > 1e4 else pytest.approx(expected))


def test_a_report_of_an_overload_has_no_p99():
    result = load_fake(itertools.repeat(20), rate=100, seconds=10, max_late_seconds=0.5)
    assert result.percentile(25) < 600
    assert result.percentile(99) == math.inf
    numbers = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (numbers["99.0%"], numbers["iterations"] + numbers["dropped"]) == (None, 1000)


def report_of(measurement):
    setting = EngineSetting("fake", 1, 1, None, 1)
    return report(Asked("m.onnx", Scheduler.multi_stream, None, 1.0), setting, measurement)


def test_printed_percentiles_say_how_few_requests_stand_behind(capsys):
    print_report(report_of(load_fake(itertools.repeat(20), seconds=1)))
    out = capsys.readouterr().out
    assert "Latency p50 (ms/batch): 20.0000\n" in out
    assert "Latency p99 (ms/batch): 20.0000 (of 50 requests; it takes 300)" in out
    print_report(report_of(load_fake(itertools.repeat(1), seconds=1)))
    assert "Latency p99 (ms/batch): 1.0000\n" in capsys.readouterr().out
    print_report(report_of(load_fake([20] * 500, rate=100, seconds=5, max_late_seconds=0.5)))
    assert "Latency p99 (ms/batch): infinite, by dropped requests" in capsys.readouterr().out


def test_tables_mark_percentiles_of_few_requests(capsys):
    few = {"swept": {"rate": 9}, **report_of(load_fake(itertools.repeat(20), seconds=1))}
    many = {"swept": {"rate": 9}, **report_of(load_fake(itertools.repeat(1), seconds=1))}
    result = {"model_path": "m.onnx", "sweep": {"rate": [9]}, "interrupted": False}
    print_sweep({**result, "measurements": [few]})
    out = capsys.readouterr().out
    assert "~20.00" in out and "p99 300" in out
    print_sweep({**result, "measurements": [many]})
    assert "~" not in capsys.readouterr().out


# --- Sweeps -------------------------------------------------------------------------------------

axis_values = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["num_streams", "batch_size", "callers"]), axis_values))
def test_combinations_have_each_once(axes):
    every = [tuple(each.items()) for each in combinations(axes)]
    assert len(every) == len(set(every)) == math.prod(len(set(v)) for v in axes.values())


def fakes(opened, failing=()):
    """Stands for `open_engine`; notes what it was asked for."""

    def open_fake(name, path, **options):
        opened.append(options)
        if options in failing:
            raise OptionError("cannot be had")
        return FakeEngine(ManualClock(), itertools.repeat(1))

    return open_fake


def test_a_sweep_measures_each_combination_once_and_goes_on_after_one_that_cannot_be_had():
    opened = []
    result = sweep(
        "model",
        {"num_streams": [1, 2, 2], "batch_size": [1, 8]},
        open_with=fakes(opened, failing=[{"num_streams": 2, "batch_size": 1}]),
        callers=1,
        seconds=0.01,
        warmup_seconds=0,
    )
    expected = [{"num_streams": s, "batch_size": b} for s in (1, 2) for b in (1, 8)]
    assert opened == [point.values for point in result.points] == expected
    assert [point.error is None for point in result.points] == [True, True, False, True]
    assert all((point.measurement is None) != (point.error is None) for point in result.points)
    assert not result.is_interrupted


# --- Engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime:per_stream"])
def test_plain_onnxruntime_gets_the_same_inputs_and_gives_the_same_outputs(mlp, name):
    with Engine(mlp, 3) as ours, closing(open_engine(name, mlp, batch_size=3)) as theirs:
        inputs = theirs.generate_random_inputs()
        np.testing.assert_array_equal(inputs[0], ours.generate_random_inputs()[0])
        np.testing.assert_allclose(theirs.run(inputs)[0], ours.run(inputs)[0], rtol=1e-4)
        assert (theirs.batch_size, theirs.num_cores) == (3, ours.num_cores)
        result = measure(theirs, callers=3, seconds=0.05, warmup_seconds=0)
    assert result.stats is None
    assert result.iterations > 0


def test_openvino_gives_the_same_outputs(mlp):
    pytest.importorskip("openvino")
    with Engine(mlp, 3) as ours, closing(open_engine("openvino", mlp, batch_size=3)) as theirs:
        inputs = theirs.generate_random_inputs()
        np.testing.assert_allclose(theirs.run(inputs)[0], ours.run(inputs)[0], rtol=1e-3, atol=1e-5)


CLASSES = """
import os, signal
import numpy as np

class Described:
    inputs = [("x", (2, None), "float32")]
    def __init__(self, model_path, batch_size, num_cores, num_streams, input_shapes):
        assert (batch_size, num_streams) == (2, 1)
        self.closed = []
        closed_lists.append(self.closed)
    def run(self, inputs):
        assert inputs[0].shape == (2, 1) and inputs[0].dtype == np.float32
    def close(self):
        self.closed.append(True)

closed_lists = []

class Interrupts:
    '''Ctrl-C comes while the tenth request of the second of these runs.'''
    made = 0
    def __init__(self, **options):
        Interrupts.made += 1
        self.runs = 0
    def run(self, inputs):
        self.runs += 1
        if self.runs == 10 and self.made == 2:
            os.kill(os.getpid(), signal.SIGINT)
    def generate_random_inputs(self):
        return []

class InterruptsAtOnce(Interrupts):
    made = 1
    def __init__(self, **options):
        self.runs, self.made = 0, 2

class Search:
    '''Ctrl-C comes at the 40th request, in the first step.'''
    def __init__(self, **options):
        self.runs = 0
    def run(self, inputs):
        self.runs += 1
        if self.runs == 40:
            os.kill(os.getpid(), signal.SIGINT)
    def generate_random_inputs(self):
        return []

class NoRun:
    def __init__(self, **options): pass

class NoInputs(NoRun):
    def run(self, inputs):
        (x,) = inputs
        assert x.shape == (1, 64) and x.dtype == np.float32

class DeepSparses:
    '''As its users wrote them: no other parameters, and one more of run.'''
    def __init__(self, model_path, batch_size, num_cores):
        assert num_cores >= 1
    def run(self, inputs, val_inp):
        assert val_inp is False

class BreaksDown:
    '''The second of these raises in its tenth request.'''
    made, closed = 0, 0
    def __init__(self, model_path):
        BreaksDown.made += 1
        self.number, self.runs = BreaksDown.made, 0
    def run(self, inputs):
        self.runs += 1
        if self.runs == 10 and self.number == 2:
            raise RuntimeError("out of paper")
    def close(self):
        BreaksDown.closed += 1

class NeverRuns(BreaksDown):
    def run(self, inputs):
        raise RuntimeError("out of paper")

class Fails:
    def __init__(self, **options):
        raise RuntimeError("out of order")
"""


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """The name of a module with classes of a user's, in the working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_engines.py").write_text(CLASSES)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_engines"
    sys.modules.pop("my_engines", None)


def test_a_class_of_the_users_is_measured_and_closed(classes, mlp, capsys):
    options = ["-b", "2", "-nstreams", "1", "-t", "0.05", "-w", "0", "--json"]
    assert main(["benchmark", mlp, "-e", f"{classes}:Described", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "my_engines:Described" in result["engine"]
    assert result["scheduler"] is None
    assert result["benchmark_result"]["iterations"] > 0
    assert sys.modules[classes].closed_lists == [[True]]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("tensorrt", "engine must be one of deepsched, onnxruntime"),
        ("no_such_module:Class", "cannot import 'no_such_module'"),
        ("my_engines:Nothing", "has no class 'Nothing'"),
        ("my_engines:NoRun", "needs run"),
        ("my_engines:NeverRuns", "run raised RuntimeError: out of paper"),
        ("./no_such_script.py:Class", "no file './no_such_script.py'"),
        ("my_engines:Fails", "raised RuntimeError: out of order"),
        ("openvino", r"pip install 'deepsched\[peers\]'"),
    ],
)
def test_an_engine_that_cannot_be_had_says_what_to_do(classes, mlp, monkeypatch, engine, message):
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed
    with pytest.raises(OptionError, match=message):
        open_engine(engine, mlp)


@pytest.mark.parametrize("where", ["my_engines", "./my_engines.py", "{folder}/my_engines.py"])
@pytest.mark.parametrize("name", ["NoInputs", "DeepSparses"])
def test_a_class_that_takes_less_gets_less_and_inputs_that_fit_the_model(
    classes, mlp, capsys, where, name
):
    engine = f"{where.format(folder=os.getcwd())}:{name}"
    assert main(["benchmark", mlp, "-e", engine, *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark_result"]["iterations"] > 0


def test_an_engine_that_fails_its_trial_run_is_closed(classes, mlp, monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    with pytest.raises(OptionError, match="out of paper"):
        open_engine(f"{classes}:NeverRuns", mlp)
    assert sys.modules[classes].BreaksDown.closed == 1


def test_a_sweep_goes_on_after_an_engine_that_breaks_down(classes, mlp, capsys):
    options = [*QUICK, "--sweep", "callers=1,2,3", "--json"]
    assert main(["benchmark", mlp, "-e", f"{classes}:BreaksDown", *options]) == 0
    reports = json.loads(capsys.readouterr().out)["measurements"]
    assert ["error" in report for report in reports] == [False, True, False]
    assert "run raised RuntimeError: out of paper" in reports[1]["error"]


def test_other_engines_refuse_what_does_not_fit_the_model(mlp, tmp_path):
    with pytest.raises(ShapeOverrideError):
        open_engine("onnxruntime", mlp, input_shapes=[[1, 64], [1, 64]])
    with pytest.raises(UnsupportedModelError, match="onnxruntime"):
        open_engine("onnxruntime", mlp, input_shapes=[[1, 65]])
    strings = models.save(models.sequence_insert(), tmp_path, "sequence.onnx")
    with pytest.raises(OptionError, match=r"seq\(tensor\(float\)\)"):
        open_engine("onnxruntime", strings)


# --- The command --------------------------------------------------------------------------------

DEEPSPARSE_KEYS = {
    "engine",
    "version",
    "orig_model_path",
    "model_path",
    "batch_size",
    "input_shapes",
    "num_cores",
    "scenario",
    "scheduler",
    "seconds_to_run",
    "num_streams",
    "benchmark_result",
    "fraction_of_supported_ops",
}
DEEPSPARSE_RESULTS = {
    "scenario",
    "items_per_sec",
    "seconds_ran",
    "iterations",
    "median",
    "mean",
    "std",
    "25.0%",
    "50.0%",
    "75.0%",
    "90.0%",
    "95.0%",
    "99.0%",
    "99.9%",
}
QUICK = ["-t", "0.05", "-w", "0", "-q"]


@pytest.mark.parametrize("load", [[], ["--callers", "3"], ["--rate", "200", "--poisson"]])
def test_the_json_keeps_deepsparses_keys_and_the_help_defines_all(mlp, capsys, load):
    assert main(["benchmark", mlp, "--json", "-t", "0.2", "-w", "0", *load]) == 0
    result = json.loads(capsys.readouterr().out)
    numbers = result["benchmark_result"]
    assert set(result) >= DEEPSPARSE_KEYS | {"interrupted"}
    assert set(numbers) >= DEEPSPARSE_RESULTS | {"callers"}
    defined = {name for field in FIELDS for name in field.replace(" ... ", ", ").split(", ")}
    defined |= DEEPSPARSE_RESULTS  # "25.0% ... 99.9%"
    assert set(result) - {"benchmark_result", "measurements"} | set(numbers) == defined
    assert numbers["waiting_ms"]["50.0%"] <= numbers["waiting_ms"]["99.9%"]
    assert len(numbers["streams"]) == result["num_streams"]
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {field}" in text for field in FIELDS)
    assert all(f"  {field}" in text for field in SEARCH_FIELDS)
    assert "130  Ctrl-C" in text


def two_cores():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU has but one stream")


def test_a_model_is_compared_under_both_schedulers_by_default(mlp, tmp_path, capsys, caplog):
    two_cores()
    export = tmp_path / "out.json"
    assert main(["benchmark", mlp, "-t", "0.05", "-w", "0", "-x", str(export)]) == 0
    out = capsys.readouterr().out
    assert "has the highest throughput" in out or "of different states of the machine" in out
    result = json.loads(export.read_text())
    reports = result.pop("measurements")
    compared = [(it["scheduler"], it["benchmark_result"]["callers"]) for it in reports]
    assert compared[:2] == [("single_stream", 1), ("multi_stream", 1)]
    assert all(it["num_streams"] >= 2 for it in reports if it["scheduler"] == "multi_stream")
    assert result == reports[-1]  # for scripts that read DeepSparse's keys
    assert caplog.messages == []


@pytest.mark.parametrize("options", [["--rate", "100"], ["--sweep", "num_cores=1,2"]])
def test_the_default_multi_stream_has_several_streams(mlp, capsys, caplog, options):
    two_cores()
    assert main(["benchmark", mlp, "-t", "0.1", "-w", "0", "--json", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    last = result.get("measurements", [result])[-1]
    assert (last["scheduler"], last["num_streams"] >= 2) == ("multi_stream", True)
    assert caplog.messages == []


def test_quiet_silences_the_log(mlp, caplog):
    two_cores()
    options = ["-s", "single_stream", "-nstreams", "2", "-t", "0.05", "-w", "0"]
    assert main(["benchmark", mlp, *options]) == 0
    assert any("no effect with single_stream" in it for it in caplog.messages)
    caplog.clear()
    assert main(["benchmark", mlp, *options, "-q"]) == 0
    assert caplog.messages == []


def test_a_sweep_prints_a_table_and_writes_a_csv(mlp, tmp_path, capsys):
    file, export = tmp_path / "out.csv", tmp_path / "out.json"
    axes = ["--sweep", "callers=1,2", "--sweep", "batch_size=1,4", "--sweep", "num_streams=1,999"]
    assert main(["benchmark", mlp, *QUICK, *axes, "--csv", str(file), "-x", str(export)]) == 0
    assert "num_streams must be " in capsys.readouterr().out
    rows = list(csv.DictReader(file.read_text().splitlines()))
    swept = [(row["callers"], row["batch_size"], row["num_streams"]) for row in rows]
    assert sorted(swept) == sorted(itertools.product("12", "14", ("1", "999")))
    for row in rows:
        assert bool(row["error"]) == (row["num_streams"] == "999")
        assert bool(row["items_per_sec"]) != bool(row["error"])
    assert len(json.loads(export.read_text())["measurements"]) == 8


def test_a_sweep_in_which_nothing_can_be_had_is_an_error(capsys):
    assert main(["benchmark", "nowhere.onnx", "--sweep", "callers=1,2", *QUICK]) == 2
    assert "no model file at 'nowhere.onnx'" in capsys.readouterr().err


def test_a_search_prints_the_rates_tried_and_the_highest(mlp, tmp_path, capsys):
    export = tmp_path / "out.json"
    options = ["--p99-limit", "500", "--callers", "2", "-x", str(export)]
    assert main(["benchmark", mlp, *QUICK, *options]) == 0
    assert "Highest Rate with p99 within 500 ms" in capsys.readouterr().out
    search = json.loads(export.read_text())["search"]
    steps = {f"steps[].{field}" for step in search["steps"] for field in step}
    assert set(search) | steps == set(SEARCH_FIELDS)


def test_a_sweep_without_values_goes_over_what_the_machine_has(classes, mlp, capsys):
    options = [*QUICK, "--sweep", "num_streams,batch_size,num_cores", "-ncores", "1", "--json"]
    assert main(["benchmark", mlp, "-e", f"{classes}:DeepSparses", *options]) == 0
    swept = json.loads(capsys.readouterr().out)["sweep"]
    assert swept == {"num_streams": [1], "batch_size": [1, 4, 16], "num_cores": [1]}


@pytest.mark.parametrize(
    ("scenario", "printed", "exported"),
    [
        ("sync", "sync", "singlestream"),
        ("async", "async", "multistream"),
        ("elastic", "elastic", "elastic"),
        ("single_stream", "sync", "singlestream"),
    ],
)
@pytest.mark.parametrize("engine", ["deepsparse", "onnxruntime"])
def test_scenarios_are_called_as_deepsparse_calls_them(
    mlp, tmp_path, capsys, scenario, printed, exported, engine
):
    export = tmp_path / "out.json"
    options = ["-s", scenario, "-e", engine, "--input_shape", "[1,64]", "-x", str(export)]
    assert main(["benchmark", mlp, *QUICK, *options]) == 0
    assert f"\nScenario: {printed}\n" in capsys.readouterr().out
    result = json.loads(export.read_text())
    assert result["scenario"] == result["benchmark_result"]["scenario"] == exported
    assert result["input_shapes"] == [[1, 64]]
    assert result["fraction_of_supported_ops"] == (1.0 if engine == "deepsparse" else None)


def test_deepsparses_flags_of_a_kv_cache_are_taken_and_said_to_have_no_effect(mlp, capsys):
    flags = [
        "-pin",
        "numa",
        "-input_ids_len",
        "4",
        "--no-internal-kv-cache",
        "--disable_kv_cache_overrides",
        "--num-kv-cache-tokens",
        "0",
    ]
    assert main(["benchmark", mlp, *QUICK, *flags]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "--pin numa: the same as core; streams respect NUMA nodes anyway",
        "--input-ids-length, --no-internal-kv-cache, --disable-kv-cache-overrides, "
        "--num-kv-cache-tokens: no effect; the engine has no KV cache",
    ]
    assert main(["benchmark", mlp, *QUICK]) == 0
    assert capsys.readouterr().err == ""


def test_a_sequence_length_is_that_of_inputs_that_leave_it_open(mlp, tmp_path, capsys):
    tokens = models.save(models.identity(("batch", "length")), tmp_path, "tokens.onnx")
    options = [*QUICK, "-seq_len", "7", "--sweep", "batch_size=1,2", "--json"]
    assert main(["benchmark", tokens, *options]) == 0
    reports = json.loads(capsys.readouterr().out)["measurements"]
    assert [report["sequence_length"] for report in reports] == [7, 7]
    assert list(sequence_shapes(tokens, 2, 7)) == [[2, 7]]
    assert main(["benchmark", mlp, *QUICK, "-seq_len", "7"]) == 2
    assert "give input_shapes" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["deepsched", "onnxruntime"])
def test_a_batch_that_no_input_can_hold_is_refused(tmp_path, capsys, engine):
    numbers = models.save(models.identity(()), tmp_path, "numbers.onnx")
    assert main(["benchmark", numbers, *QUICK, "-e", engine, "-b", "4"]) == 2
    assert "no input of this model has dimensions" in capsys.readouterr().err
    with pytest.raises(ShapeOverrideError):
        open_engine(engine, numbers, batch_size=4)
    assert main(["benchmark", numbers, *QUICK, "-e", engine, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)["benchmark_result"]
    assert numbers["items_per_sec"] == numbers["iterations"] / numbers["seconds_ran"]


def test_options_are_not_abbreviated(mlp, capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", mlp, "--scen", "sync"])
    assert "unrecognized arguments: --scen" in capsys.readouterr().err


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    model = models.save(models.mlp(), tmp_path, "m[b]:x:[red].onnx")
    assert main(["benchmark", model, *QUICK, "--sweep", "callers=1,2"]) == 0
    assert "m[b]:x:[red].onnx" in capsys.readouterr().out


def test_ctrl_c_in_a_sweep_prints_what_was_measured(classes, mlp, tmp_path, capsys):
    export = tmp_path / "out.json"
    options = ["-t", "0.05", "-w", "0", "--sweep", "callers=1,2,3", "-x", str(export)]
    # The first combination takes its time; the second is interrupted in its tenth request.
    assert main(["benchmark", mlp, "-e", f"{classes}:Interrupts", *options]) == 130
    assert "Interrupted" in capsys.readouterr().out
    result = json.loads(export.read_text())
    assert result["interrupted"]
    assert [report["swept"]["callers"] for report in result["measurements"]] == [1, 2]
    assert not result["measurements"][0]["interrupted"]


def test_ctrl_c_in_an_open_loop_prints_what_was_measured(classes, mlp, capsys):
    options = ["-t", "600", "-w", "0", "--rate", "200", "--json"]
    assert main(["benchmark", mlp, "-e", f"{classes}:InterruptsAtOnce", *options]) == 130
    result = json.loads(capsys.readouterr().out)
    assert result["interrupted"]
    assert result["benchmark_result"]["iterations"] + 1 >= 9  # one was for trying it out


def test_ctrl_c_in_a_search_prints_what_was_found(classes, mlp, capsys):
    options = ["-t", "600", "-w", "0", "--p99-limit", "5"]
    assert main(["benchmark", mlp, "-e", f"{classes}:Search", *options]) == 130
    assert "Interrupted: a higher rate may hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--rate must be positive, got 0"),
        (["--callers", "0"], "--callers must be at least 1, got 0"),
        (["--poisson"], "--poisson needs an open loop"),
        (["--p99-limit", "0"], "--p99-limit must be positive"),
        (["--p99-limit", "5", "--rate", "5"], "--p99-limit searches for the rate"),
        (["--poisson", "--rate", "9", "--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["-w", "-1"], "--warmup-time 0 or more, got -1"),
        (["--sweep", "rate=nan,100"], "expected a finite number, got 'nan'"),
        (["--sweep", "rate"], "rate has no default values"),
        (["-seq_len", "7", "-i", "[1,7]"], "--sequence-length and --input-shapes"),
        (["-x", "/tmp/x", "--csv", "/tmp/./x"], "--output and --csv both name"),
        (["--sweep", "colour=1,2"], "--sweep must look like num_streams=1,2,4"),
        (["--sweep", "callers=one"], "--sweep must look like"),
        (["--sweep", "callers=1", "--sweep", "callers=2"], "each once"),
        (["--plot", "x.png"], "--plot draws a sweep"),
        (["--sweep", "callers=1", "--plot", "x.png"], "pip install 'deepsched[plot]'"),
        (["--csv", "/nowhere/x.csv"], "cannot write --csv"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    mlp, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr("deepsched.benchmark.plot.find_spec", lambda name: None)
    assert main(["benchmark", mlp, *QUICK, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["-t", "-w", "--rate", "--p99-limit"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(mlp, capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", mlp, f"{option}={value}" if option[1] == "-" else option + value])
    assert "expected a finite number" in capsys.readouterr().err


def test_a_plot_of_a_sweep_is_drawn(mlp, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    axes = ["--sweep", "callers=1,2", "--sweep", "batch_size=1,2"]
    assert main(["benchmark", mlp, *QUICK, *axes, "--plot", str(tmp_path / "x.gif")]) == 2
    assert ".png" in capsys.readouterr().err
    assert main(["benchmark", mlp, *QUICK, *axes, "--plot", str(tmp_path / "x.svg")]) == 0
    assert "<svg" in (tmp_path / "x.svg").read_text()
