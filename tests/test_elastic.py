"""The elastic scheduler: the tree of core groups, the policy, and real requests."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulate import Machine, amdahl, poisson, simulate
from deepsched import Context, Engine, Topology, partition
from deepsched.errors import StreamConfigError
from deepsched.runtime.model import Model
from deepsched.runtime.policy import PolicyTree
from deepsched.scheduling.group_tree import tree_of
from deepsched.scheduling.scaling import run_lengths, useful
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.requests import SQUARE, STEPS, item, run_until_busy
from tests.support.strategies import random_topologies
from tests.support.threads import in_threads

# --- The tree -------------------------------------------------------------------------------------


@given(topology=random_topologies(), data=st.data())
def test_the_tree_merges_neighbours_up_to_the_whole_budget(topology, data):
    most = len(partition(topology, num_streams=1).streams[0].cores)
    streams = partition(topology, num_streams=data.draw(st.integers(1, most))).streams
    tree = tree_of(streams)
    assert tree.leaves[: len(streams)] == tuple((i, i + 1) for i in range(len(streams)))
    assert tree.leaves[tree.root] == (0, len(streams))
    assert len(tree.leaves) == 2 * len(streams) - 1  # each merge joins two
    for group, parent in enumerate(tree.parents):
        low, high = tree.leaves[group]
        if parent < 0:
            assert group == tree.root
            continue
        above = tree.leaves[parent]
        assert above[0] <= low and high <= above[1] and above != (low, high)
        assert parent > group  # wider ones come later
    for group in range(len(streams), len(tree.leaves)):
        children = [tree.leaves[child] for child in range(group) if tree.parents[child] == group]
        assert len(children) == 2
        assert sorted(children)[0][1] == sorted(children)[1][0]


@given(topology=random_topologies(with_quota=False))
def test_neighbours_in_a_cache_are_merged_before_others(topology):
    streams = partition(topology, num_streams=len(topology.cores)).streams
    tree = tree_of(streams)
    for low, high in tree.leaves:
        caches = [stream.cores[0].l3 for stream in streams[low:high]]
        if len(set(caches)) > 1:  # then it holds all of each cache that it touches
            nodes = [stream.cores[0].numa_node for stream in streams[low:high]]
            everything = [stream.cores[0] for stream in streams]
            if len(set(nodes)) == 1 and None not in caches:
                for cache in set(caches):
                    assert caches.count(cache) == sum(core.l3 == cache for core in everything)


# --- The policy -----------------------------------------------------------------------------------

trees = st.integers(1, 64).map(
    lambda count: tree_of(partition(Topology.synthetic(1, 1, 1, count), num_streams=count).streams)
)


@st.composite
def situations(draw):
    tree = draw(trees)
    native = PolicyTree(tree.leaves, tree.parents)
    one = draw(st.integers(1_000, 10**9))
    serial = draw(st.floats(0, 1))
    lengths = amdahl(serial, draw(st.integers(1, 64)), one)
    run_ns = useful(
        tree,
        {
            tree.num_cores(g): max(1, int(lengths(tree.num_cores(g))))
            for g in range(len(tree.leaves))
        },
    )
    busy = draw(
        st.lists(
            st.just(0) | st.integers(1, 10**9), min_size=tree.num_leaves, max_size=tree.num_leaves
        )
    )
    leaf = draw(st.integers(0, tree.num_leaves - 1))
    busy[leaf] = 0
    return tree, native, run_ns, busy, leaf


@given(situation=situations(), num_requests=st.floats(1, 1e6))
def test_a_group_around_the_leaf_that_is_not_wider_than_helps(situation, num_requests):
    tree, native, run_ns, busy, leaf = situation
    group = native.choose(run_ns, busy, leaf, 1, num_requests - 1)
    assert group in tree.around(leaf)
    assert run_ns[group] > 0


@given(situation=situations())
def test_a_lone_request_on_an_idle_machine_takes_the_fastest_group(situation):
    tree, native, run_ns, _, leaf = situation
    group = native.choose(run_ns, [0] * tree.num_leaves, leaf, 1)
    assert run_ns[group] == min(run_ns[g] for g in tree.around(leaf) if run_ns[g])


@given(situation=situations())
def test_a_long_backlog_takes_the_width_that_serves_the_most(situation):
    """No model of this curve gains more than twice from twice the cores: single streams."""
    tree, native, run_ns, busy, leaf = situation
    assert native.choose(run_ns, busy, leaf, 1, 4.0 * tree.num_leaves) == leaf


def test_a_backlog_of_a_model_that_gains_more_than_its_share_runs_wide():
    native = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    assert native.choose([100, 100, 40], [0, 0], 0, 10) == 2
    assert native.choose([100, 100, 49], [0, 0], 0, 10) == 0  # hardly more


@given(situation=situations())
def test_waiting_for_a_group_never_costs_a_lone_request_time(situation):
    """The bound: what it waits for and runs on is expected to be done before its own stream."""
    tree, native, run_ns, busy, leaf = situation
    group = native.choose(run_ns, busy, leaf, 1)
    low, high = tree.leaves[group]
    if group != leaf and any(busy[low:high]):
        # It waits for the first group of that width, not for this one.
        width = high - low
        first = min(
            max(busy[lo:hi])
            for (lo, hi), above in zip(tree.leaves, tree.parents, strict=True)
            if hi - lo <= width
            and (above < 0 or tree.leaves[above][1] - tree.leaves[above][0] > width)
        )
        assert first + run_ns[group] <= run_ns[leaf]


@given(situation=situations())
def test_the_roomiest_leaf_is_free_and_has_the_widest_free_group(situation):
    tree, native, _, busy, _ = situation
    leaf = native.roomiest_leaf(busy)
    free = [hi - lo for lo, hi in tree.leaves if not any(busy[lo:hi])]
    around = [tree.leaves[g] for g in tree.around(leaf)]
    assert busy[leaf] == 0
    assert max(hi - lo for lo, hi in around if not any(busy[lo:hi])) == max(free)
    assert native.roomiest_leaf([1] * tree.num_leaves) == -1


# --- The simulator --------------------------------------------------------------------------------


def test_the_simulator_agrees_with_queueing_theory():
    """M/D/1: the mean wait is rho / (2 (1 - rho)) runs."""
    tree = tree_of(partition(Topology.synthetic(1, 1, 1, 1)).streams)
    machine = Machine(tree, lambda cores: 1.0, 1)
    result = simulate(machine, poisson(0.5), num_requests=100_000)
    assert result.mean == pytest.approx(1.5, rel=0.02)
    assert simulate(Machine(tree, lambda cores: 1.0, 1), callers=3, num_requests=100).mean == (
        pytest.approx(3.0, rel=0.05)
    )


@pytest.mark.parametrize("load", [0.2, 0.4, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("two_cores", [0.51, 0.57, 0.66, 0.75])
def test_simulated_elastic_is_near_the_better_fixed_setting_at_every_load(load, two_cores):
    machine = Topology.synthetic(1, 1, 1, 2)
    one, two = (tree_of(partition(machine, num_streams=count).streams) for count in (1, 2))

    def run_s(cores):
        return {1: 1.0, 2: two_cores}[cores]

    def mean(tree, is_elastic):
        arrivals = poisson(2 * load)
        return simulate(Machine(tree, run_s, 2), arrivals, is_elastic=is_elastic).mean

    fixed = [mean(two, False)]
    if 2 * load * two_cores < 0.98:  # else its queue never ends
        fixed.append(mean(one, False))
    assert mean(two, True) <= 1.05 * min(fixed)


# --- With real requests ---------------------------------------------------------------------------


def scaling(engine, one_ns=10_000_000):
    """Tells the runtime that the model scales well, whatever was measured on this machine, and
    whatever it has learned since."""
    leaves = engine.context._layout.tree.leaves
    engine._model.set_run_ns([one_ns // (high - low) for low, high in leaves])


def test_by_default_each_core_is_a_stream():
    with Context(scheduler="elastic") as context:
        assert context.num_streams == context.num_cores
    with Context(topology=Topology.synthetic(2, 1, 8, 8), scheduler="elastic", pin="none") as big:
        assert big.num_streams == 64 and big.num_cores == 128
        with pytest.raises(StreamConfigError, match="at most 64 streams, got 65"):
            Context(topology=big.topology, scheduler="elastic", num_streams=65, pin="none")


def test_a_lone_caller_takes_all_streams_and_a_crowd_takes_single_ones():
    with unpinned(4, "elastic") as context:
        engine = Engine(models.spin(), None, context=context)
        scaling(engine, 10**10)
        expected = engine.run([STEPS, SQUARE])
        before = engine.stats().by_width
        for _ in range(20):
            scaling(engine, 10**10)
            np.testing.assert_array_equal(engine.run([STEPS, SQUARE])[0], expected[0])
        alone = engine.stats().by_width
        assert alone[4] - before.get(4, 0) == 20

        def call(_):
            for _ in range(20):
                np.testing.assert_array_equal(engine.run([STEPS, SQUARE])[0], expected[0])

        # Told too short a length, every wide run of the crowd makes wide look worse. Told too long
        # a one, as above, it makes wide look ever better than the narrow that nobody tried.
        scaling(engine, 100_000)
        in_threads(16, call)
        crowded = engine.stats()
        assert crowded.by_width[1] > 160
        assert sum(crowded.by_width.values()) == crowded.done == 341
        while (
            context._shared.dispatcher.num_busy
        ):  # a worker gives its stream up after the last answer
            threading.Event().wait(0.001)


def test_a_request_that_waits_for_a_wider_group_is_not_kept_waiting_for_ever():
    """What runs beside it was expected to end long ago."""
    with unpinned(2, "elastic") as context:
        long = Engine(models.spin(), None, context=context)
        long._model.set_run_ns([1000, 1000, 0])  # takes one stream, for a microsecond it seems
        short = Engine(models.gather(), None, context=context)
        scaling(short, 1_000_000)
        running = run_until_busy(long)
        try:
            for how in (short.run, lambda inputs: short.submit(inputs).result(60)):
                assert how(item(5))[0] == [5]
        finally:
            running.cancel()
        assert short.stats().by_width == {1: 2}


@pytest.mark.parametrize("num_streams", [2, 3, 7])
def test_nothing_is_lost_when_requests_are_held(num_streams):
    """Bursts of one to three, so that groups are merged and split all the time."""
    with unpinned(num_streams, "elastic") as context:
        engine = Engine(models.gather(), None, context=context)
        scaling(engine, 200_000)
        for number in range(1500):
            futures = [engine.submit(item(number + i)) for i in range(1 + number % 3)]
            for i, future in enumerate(futures):
                assert future.result(60)[0] == [number + i]
        stats = engine.stats()
        assert stats.done == 3000
        assert len(stats.by_width) > 1


def test_stopping_reaches_runs_on_wide_groups():
    with unpinned(4, "elastic") as context:
        engine = Engine(models.spin(), None, context=context)
        scaling(engine, 10**9)
        future = run_until_busy(engine)
        future.cancel()
        engine.run([STEPS, SQUARE])
        assert engine.stats().cancelled == 1


def test_how_a_model_scales_is_measured_once_for_each_layout(tmp_path, monkeypatch, quiet):
    def open_with(num_streams):
        with (
            unpinned(num_streams, "elastic") as context,
            Engine(models.spin(), None, context=context, cache_dir=tmp_path),
        ):
            pass

    open_with(2)
    open_with(4)
    kept = sorted(tmp_path.glob("v1/measured/*"))
    assert len(kept) == 2
    monkeypatch.setattr(
        "deepsched.scheduling.streams.run_lengths",
        lambda tree, measure, *others: run_lengths(tree, None, *others),
    )
    open_with(2)  # a call of None would have failed
    open_with(4)
    whole = kept[0].read_text()
    for damage in ("", "{}", "[]", '{"x": 3}', whole[:-3], whole.replace("1", "2")):
        for path in kept:
            path.write_text(damage)
        with pytest.raises(TypeError):
            open_with(2)


@pytest.mark.parametrize("answer", [None, [], {}, {"1": "x"}, {"x": 3}, {"1": 0}, 5])
def test_a_measurement_of_another_form_is_ignored(answer):
    tree = tree_of(partition(Topology.synthetic(1, 1, 1, 2), num_streams=2).streams)
    kept = Kept(answer)
    lengths = run_lengths(tree, lambda group, seconds: 100 - group, kept, "layout", None)
    assert lengths == useful(tree, kept.answer) == [100, 100, 0]
    assert lengths == run_lengths(tree, None, kept, "layout", None)


class Kept:
    """The measurements of a model, in memory."""

    def __init__(self, answer):
        self.answer = answer

    def read(self, kind, question):
        return self.answer

    def write(self, kind, question, answer, others_share):
        self.answer = answer


def test_without_a_cache_it_is_measured_each_time(monkeypatch):
    measured = []

    def run_lengths_counted(tree, measure, kept, *others):
        measured.append(kept)
        return run_lengths(tree, measure, kept, *others)

    monkeypatch.setattr("deepsched.scheduling.streams.run_lengths", run_lengths_counted)
    with unpinned(2, "elastic") as context:
        Engine(models.spin(), None, context=context, cache_dir=None)
    assert measured == [None]


def test_a_model_that_made_up_inputs_do_not_fit_runs_on_single_streams(caplog):
    with unpinned(2, "elastic") as context:
        engine = Engine(models.gather(), None, context=context)
        assert "cannot be measured" in caplog.text
        assert engine.run(item(3))[0] == [3]
        assert engine.stats().by_width == {1: 1}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_pinned_threads_of_wide_runs_stand_on_cores_of_their_own():
    with Context(scheduler="elastic", num_cores=2) as context:
        engine = Engine(models.spin(), None, context=context)
        assert isinstance(engine._model, Model)
        scaling(engine, 10**10)
        mask = os.sched_getaffinity(0)
        for _ in range(8):
            scaling(engine, 10**10)
            engine.run([STEPS, SQUARE])
            assert os.sched_getaffinity(0) == mask
        assert engine.stats().by_width == {2: 8}
