"""Requests one after the other, timed: DeepSparse's benchmark methods and their results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import Engine, benchmark_model
from deepsched.errors import OptionError
from deepsched.invocation.sequential_timing import BatchBenchmarkResult, BenchmarkResults
from tests.support import models


@pytest.fixture
def engine():
    with Engine(models.identity((2,)), None) as engine:
        yield engine


def batches(count):
    return [[np.full(2, number, np.float32)] for number in range(count)]


def test_timed_run_returns_outputs_and_seconds(engine):
    (x,) = batches(1)[0]
    outputs, seconds = engine.timed_run([x])
    assert outputs[0].tolist() == engine.run([x])[0].tolist()
    assert 0 < seconds < 10


def test_a_loader_is_repeated_in_order(engine):
    results = engine.benchmark_loader(
        batches(3),
        num_iterations=5,
        num_warmup_iterations=2,
        include_inputs=True,
        include_outputs=True,
    )
    assert len(results) == results.num_batches == 5
    assert [inputs[0][0] for inputs in results.inputs] == [2, 0, 1, 2, 0]
    assert [outputs[0][0] for outputs in results.outputs] == [2, 0, 1, 2, 0]
    for before, after in zip(results, results[1:], strict=False):
        assert before.time_start < before.time_end <= after.time_start


def test_nothing_is_kept_unless_asked_for(engine):
    results = engine.benchmark(batches(1)[0], num_iterations=2)
    assert results.inputs == results.outputs == [None, None]


def test_a_loader_that_runs_out_for_good_says_so(engine):
    with pytest.raises(OptionError, match="the loader ran out"):
        engine.benchmark_loader(iter(batches(3)), num_iterations=5)
    with pytest.raises(OptionError, match="the loader ran out"):
        engine.benchmark_loader([])
    taken = engine.benchmark_loader(iter(batches(7)), num_iterations=5, num_warmup_iterations=2)
    assert len(taken) == 5


def test_an_open_batch_is_counted_by_the_inputs(engine):
    results = engine.benchmark({"x": np.zeros(2, np.float32)}, num_iterations=3)
    assert results.batch_sizes == [2, 2, 2]
    fixed = benchmark_model(models.mlp(), [np.zeros((4, 64), np.float32)], 4, num_iterations=3)
    assert fixed.num_items == 12


def test_a_progress_bar_is_drawn_on_stderr_alone(engine, capsys):
    engine.benchmark(batches(1)[0], num_iterations=2, show_progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "iterations" in captured.err


@pytest.mark.parametrize(
    "options", [{"num_iterations": 0}, {"num_iterations": 2.5}, {"num_warmup_iterations": -1}]
)
def test_numbers_that_make_no_sense_are_refused(engine, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        engine.benchmark(batches(1)[0], **options)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(1e-6, 10), st.integers(1, 64)), min_size=1))
def test_results_are_those_of_the_single_requests(requests):
    results = BenchmarkResults(
        BatchBenchmarkResult(begin, begin + took, size) for begin, took, size in requests
    )
    times = np.array([result.time_elapsed for result in results])
    assert results.batch_times_mean == pytest.approx(times.mean())
    assert results.batch_times_median == pytest.approx(np.median(times))
    assert results.batch_times_std == pytest.approx(times.std(), abs=1e-9)
    assert results.items_per_second * results.ms_per_item == pytest.approx(1e3)
    assert results.batches_per_second * results.ms_per_batch == pytest.approx(1e3)
    assert results.num_items == sum(size for _, _, size in requests)
    for result in results:
        assert result.items_per_second == pytest.approx(
            result.batch_size * result.batches_per_second
        )
        assert result.ms_per_item * result.batch_size == pytest.approx(result.ms_per_batch)
