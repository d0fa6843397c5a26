"""Engines, contexts and values that are given to other processes, or copied."""

from __future__ import annotations

import copy
import gc
import inspect
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from deepsched import Context, Engine, MultiModelEngine, Scheduler, Topology, errors, partition
from deepsched.benchmark import measure
from deepsched.doctor import check_hardware
from tests.support import models
from tests.support.contexts import unpinned

X = np.ones((1, 64), np.float32)


def sent(it):
    """What arrives where `it` is sent."""
    return pickle.loads(pickle.dumps(it))


def same(one, other):
    return np.array_equal(one.run([X])[0], other.run([X])[0])


# --- To another process -------------------------------------------------------------------------

_kept: list[Engine] = []
"""Of a pool's process."""


def _keep(*engines):
    _kept.extend(engines)


def _run(x):
    return os.getpid(), [engine.run([x])[0] for engine in _kept], [e.compiled for e in _kept]


def _shares_a_context():
    return len({id(engine.context) for engine in _kept}), _kept[0].context.num_streams


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_pool_opens_the_engines_it_is_given(mlp, tmp_path, method):
    with (
        unpinned(2) as context,
        Engine(mlp, context=context, cache_dir=tmp_path) as one,
        MultiModelEngine(models.mlp(layers=2), None, context) as other,
        ProcessPoolExecutor(
            1, multiprocessing.get_context(method), initializer=_keep, initargs=(one, other)
        ) as pool,
    ):
        pid, outputs, compiled = pool.submit(_run, X).result(60)
        assert pid != os.getpid()
        for engine, output in zip((one, other), outputs, strict=True):
            assert np.array_equal(output, engine.run([X])[0])
        assert compiled[0].was_cached and compiled[0].folder == one.compiled.folder
        assert pool.submit(_shares_a_context).result(60) == (1, 2)


def test_joblib_sends_engines_to_its_processes(mlp):
    joblib = pytest.importorskip("joblib")
    with Engine(mlp) as engine:
        run = joblib.delayed(engine.run)
        for outputs in joblib.Parallel(n_jobs=2)(run([X]) for _ in range(2)):
            assert np.array_equal(outputs[0], engine.run([X])[0])


def test_an_engine_whose_model_is_missing_there_names_it(mlp):
    with Engine(mlp) as engine:
        pickled = pickle.dumps(engine)
    Path(mlp).unlink()
    with pytest.raises(errors.ModelNotFoundError, match=r"model\.onnx"):
        pickle.loads(pickled)


# --- What is sent -------------------------------------------------------------------------------


def test_a_relative_path_is_found_from_another_folder(mlp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Engine(os.path.basename(mlp), cache_dir="cache") as engine:
        monkeypatch.chdir("/")
        with sent(engine) as other:
            assert other.model_path == mlp and same(engine, other)
            assert other.compiled.was_cached


@pytest.mark.parametrize("given", [bytes, bytearray, memoryview, onnx.load_model_from_string])
def test_a_model_from_memory_is_sent_as_it_was(given):
    serialized = models.mlp().SerializeToString()
    model = given(serialized)
    with Engine(model, cache_dir=None) as engine:
        if isinstance(model, onnx.ModelProto):
            model.Clear()
        with sent(engine) as other:
            assert other.model_path is None and same(engine, other)


def test_options_are_sent_as_they_were_given(mlp, tmp_path):
    every_cpu = os.sched_getaffinity(0)
    with Engine(mlp, 4, scheduler="multi_stream", pin="none", cache_dir=None) as engine:
        os.sched_setaffinity(0, {min(every_cpu)})
        try:
            other = sent(engine)
        finally:
            os.sched_setaffinity(0, every_cpu)
        with other:
            assert other.num_cores == 1  # all there are, as the first was asked for
            assert (other.batch_size, other.scheduler) == (4, Scheduler.multi_stream)
            assert other.context.pin == "none" and other.compiled.folder is None
    shapes = [[3, 64]]
    with Engine(mlp, input_shapes=shapes, num_cores=1, num_streams=1) as engine:
        shapes[0][0] = 7
        with sent(engine) as other:
            assert other.input_shapes == [(3, 64)] and other.num_streams == 1


@pytest.mark.parametrize("make", [Context, Engine])
def test_no_option_is_left_behind(mlp, make):
    given = {"model": mlp} if make is Engine else {}
    with make(**given) as made:
        assert made._recipe.keys() == inspect.signature(make).parameters.keys()


def test_a_context_is_sent_with_its_options():
    machine = Topology.synthetic(packages=2, cores_per_l3=2)
    with (
        Context(2, 2, "elastic", "none", machine, queue_capacity=7, spin="power") as context,
        sent(context) as other,
    ):
        assert (other.scheduler, other.num_streams, other.pin) == ("elastic", 2, "none")
        assert other.topology == machine and other.stats().queue_capacity == 7
        assert other._shared.placement.spin == "power"


def test_a_subclass_stays_one(mlp):
    class Named(Engine):
        def __init__(self, path, name):
            super().__init__(path)

    globals()["Named"], Named.__qualname__ = Named, "Named"
    with Named(mlp, "a name") as engine, sent(engine) as other:
        assert type(other) is Named and same(engine, other)


# --- What is not ---------------------------------------------------------------------------------


def test_what_is_closed_is_not_sent(mlp):
    with unpinned(1) as context:
        engine = Engine(mlp, context=context)
    for it in (engine, context):
        with pytest.raises(errors.ClosedError, match="pickle it before"):
            pickle.dumps(it)


def test_a_closed_engine_holds_no_model():
    model = models.mlp(width=256).SerializeToString()
    with Engine(model) as engine:
        assert any(held is model for held in gc.get_referents(engine._recipe))
    assert not any(held is model for held in gc.get_referents(engine._recipe))


def test_what_cannot_be_sent_says_what_to_do(mlp):
    with Engine(mlp) as engine:
        future = engine.submit([X])
        assert len(future.result(60)) == 1
        for it, hint in ((future, "send what its result"), (engine.context, "pickle the engine")):
            with pytest.raises(errors.CopyError, match=hint):
                pickle.dumps(it)


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy])
def test_nothing_that_holds_threads_is_copied_and_all_stays_open(mlp, make_copy):
    with Engine(mlp) as engine:
        for it in (engine, engine.context, [engine], engine.submit([X])):
            if not (make_copy is copy.copy and isinstance(it, list)):  # another list of the same
                with pytest.raises(errors.CopyError, match="copied"):
                    make_copy(it)
        gc.collect()
        assert len(engine.run([X])) == 1


# --- Values -------------------------------------------------------------------------------------


def test_values_are_the_same_where_they_arrive(mlp):
    machine = Topology.synthetic(cores_per_l3=3)
    with Engine(mlp, scheduler="multi_stream", num_streams=2) as engine:
        with engine.context.trace() as trace:
            engine.run([X])
        values = [
            machine,
            partition(machine, num_streams=4),
            Scheduler.elastic,
            engine.stats(),
            engine.streams,
            engine.compiled,
            engine.memory(),
            measure(engine, seconds=0.01, warmup_seconds=0),
            check_hardware(),
        ]
        for value in values:
            assert sent(value) == value and copy.deepcopy(value) == value
        assert list(sent(trace)) == list(trace) and sent(trace).text() == trace.text()
        results = engine.benchmark([X], num_iterations=2)
        assert list(sent(results)) == list(results)


@pytest.mark.parametrize(
    "error", [error for _, error in inspect.getmembers(errors, inspect.isclass)]
)
def test_errors_are_the_same_where_they_arrive(error):
    arrived = sent(error("what was wrong"))
    assert type(arrived) is error and str(arrived) == "what was wrong"


def test_a_topology_is_of_this_machine_only_until_it_is_sent():
    here = Topology.detect()
    assert here.is_local and not sent(here).is_local
    with Context(topology=sent(here)) as context:  # compared with the machine where it arrives
        assert context.pin == "core"
