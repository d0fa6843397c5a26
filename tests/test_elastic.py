"""The elastic scheduler: the tree of core groups, the policy, and real requests."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulate import (
    Elastic,
    FixedWidth,
    Machine,
    amdahl,
    in_phases,
    poisson,
    simulate,
)
from deepsched import Context, Engine, Topology, partition
from deepsched.errors import StreamConfigError
from deepsched.runtime.estimates import Learner
from deepsched.runtime.model import Model
from deepsched.runtime.policy import PolicyTree
from deepsched.scheduling.group_tree import tree_of
from deepsched.scheduling.scaling import run_lengths
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


@given(topology=random_topologies(with_quota=False))
def test_a_group_spans_numa_nodes_only_as_a_whole(topology):
    streams = partition(topology, num_streams=len(topology.cores)).streams
    everything = [stream.cores[0].numa_node for stream in streams]
    for low, high in tree_of(streams).leaves:
        nodes = everything[low:high]
        if len(set(nodes)) > 1 and None not in nodes:  # also where no cache is reported
            assert all(nodes.count(node) == everything.count(node) for node in nodes)


# --- The policy -----------------------------------------------------------------------------------

trees = st.integers(1, 64).map(
    lambda count: tree_of(partition(Topology.synthetic(1, 1, 1, count), num_streams=count).streams)
)


def policy_tree(tree):
    return PolicyTree(tree.leaves, tree.parents, tree.straddling)


def level_lengths(tree, length):
    """By level; a leaf of these trees is one core."""
    return [length(width) for width in sorted({high - low for low, high in tree.leaves})]


@st.composite
def situations(draw):
    """A tree, what its policy believes, and what runs there."""
    tree = draw(trees)
    one = draw(st.integers(10**6, 10**9))
    curve = amdahl(draw(st.floats(0, 1)), draw(st.integers(1, 64)), one)
    lengths = level_lengths(tree, lambda width: max(1.0, curve(width, 0.0)))
    busy = draw(
        st.lists(
            st.just(0) | st.integers(1, 10**9), min_size=tree.num_leaves, max_size=tree.num_leaves
        )
    )
    leaf = draw(st.integers(0, tree.num_leaves - 1))
    busy[leaf] = 0
    return tree, lengths, busy, leaf


def learner_of(tree, lengths):
    return Learner(policy_tree(tree), lengths)


@given(situation=situations(), num_waiting=st.integers(1, 1000), callers=st.integers(1, 1000))
def test_the_group_is_one_that_the_tree_has_and_that_gains(situation, num_waiting, callers):
    tree, lengths, busy, leaf = situation
    learner = learner_of(tree, lengths)
    for number in range(20):
        learner.arrive(callers, 1000 * number)
    group, is_trial = learner.decide(busy, leaf, num_waiting, 20_000, may_try=False)
    assert 0 <= group < len(tree.leaves) and not is_trial
    if tree.leaves[group] != (leaf, leaf + 1):
        low, high = tree.leaves[group]
        narrower = [
            lengths[i]
            for i, width in enumerate(sorted({hi - lo for lo, hi in tree.leaves}))
            if width < high - low
        ]
        own = lengths[len(narrower)]
        assert not narrower or own <= min(narrower)


@given(situation=situations())
def test_a_lone_request_on_an_idle_machine_takes_the_fastest_group(situation):
    tree, lengths, _, leaf = situation
    learner = learner_of(tree, lengths)
    learner.arrive(1, 1)
    group, _ = learner.decide([0] * tree.num_leaves, leaf, 1, 1, may_try=False)
    widths = sorted({high - low for low, high in tree.leaves})
    low, high = tree.leaves[group]
    # 5 % is what a wider group must gain over the next narrower one.
    assert lengths[widths.index(high - low)] <= min(lengths) / 0.95 ** len(widths)


@given(situation=situations())
def test_a_crowd_takes_the_width_that_serves_the_most(situation):
    """No model of this curve gains more than twice from twice the cores: single streams."""
    tree, lengths, busy, leaf = situation
    learner = learner_of(tree, lengths)
    now = 0
    for _ in range(200):
        now += int(lengths[0] / tree.num_leaves) + 1
        learner.arrive(4 * tree.num_leaves, now)
    group, _ = learner.decide(busy, leaf, 4 * tree.num_leaves, now, may_try=False)
    low, high = tree.leaves[group]
    widths = sorted({hi - lo for lo, hi in tree.leaves})
    work = [length * width for length, width in zip(lengths, widths, strict=True)]
    assert work[widths.index(high - low)] <= 1.06 * min(work)


def test_a_crowd_of_a_model_that_gains_more_than_its_share_runs_wide():
    """As one whose weights only fit the caches of both cores."""
    tree = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    for two_cores, wide in ((40e6, True), (49e6, True), (51e6, False)):
        learner = Learner(tree, [100e6, two_cores])
        for number in range(100):
            learner.arrive(10, 50_000_000 * number)
        group, _ = learner.decide([0, 0], 0, 9, 5_000_000_000, may_try=False)
        assert (group == 2) is wide, two_cores


def test_a_crowd_whose_narrow_runs_slow_each_other_runs_wide():
    """A model bound by memory bandwidth: 10 ms on a core alone, 18 ms beside another, 6.5 ms on
    both. What runs take alone speaks for narrow ones."""
    tree = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    learner = Learner(tree, [10e6, 6.5e6])
    now = 1
    for _ in range(100):
        now += 9_000_000
        learner.arrive(4, now)
    assert learner.decide([0, 0], 0, 3, now, may_try=False)[0] == 0
    for _ in range(100):
        now += 9_000_000
        learner.arrive(4, now)
        learner.learn(0, 1.0, 18_000_000, False, now)
    assert learner.decide([0, 0], 0, 3, now, may_try=False)[0] == 2
    assert learner.lengths[0][0] == pytest.approx(10e6), "what it takes alone is still known"


def test_narrow_runs_gather_where_the_room_is_least():
    tree = tree_of(partition(Topology.synthetic(1, 1, 2, 4), num_streams=8).streams)
    learner = learner_of(tree, level_lengths(tree, lambda width: 1e6))  # wider gains nothing
    learner.arrive(1, 1)
    busy = [0, 0, 0, 0, 0, 0, 5, 0]
    assert learner.decide(busy, -1, 1, 1, may_try=False) == (7, False)
    busy[7] = 5
    assert learner.decide(busy, -1, 1, 1, may_try=False)[0] in (4, 5)


def test_no_group_spans_nodes_while_others_wait():
    tree = tree_of(partition(Topology.synthetic(2, 1, 1, 2), num_streams=4).streams)
    assert tree.straddling == (tree.root,)
    learner = learner_of(tree, level_lengths(tree, lambda width: 1e6 / width**1.5))
    learner.arrive(2, 1)
    assert learner.decide([0] * 4, -1, 1, 1, may_try=False)[0] == tree.root
    assert learner.decide([0] * 4, -1, 2, 1, may_try=False)[0] != tree.root


# --- What is learned ------------------------------------------------------------------------------

TWO = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])


def lone_caller(learner, lengths, seconds, begins=0.0):
    """One that asks again when it is served. Returns the width of each request, and the end."""
    now, widths = begins, []
    while now < begins + seconds:
        learner.arrive(1, int(1e9 * now) + 1)
        group, is_trial = learner.decide([0, 0], -1, 1, int(1e9 * now) + 1)
        width = 2 if group == 2 else 1
        now += lengths[width]
        learner.learn(group, 0.0, int(1e9 * lengths[width]), is_trial, int(1e9 * now) + 1)
        widths.append(width)
    return widths, now


@pytest.mark.parametrize("run_s", [0.001, 0.034])
@pytest.mark.parametrize("believed", [0.9, 1.8, 4.0])
def test_a_width_that_was_wrongly_held_useless_is_used_again(run_s, believed):
    """Measured beside a neighbour, or while the cores were far apart."""
    learner = Learner(TWO, [1e9 * 1.8 * run_s, 1e9 * 1.8 * run_s * believed])
    widths, now = lone_caller(learner, {1: 1.8 * run_s, 2: run_s}, 5.0)
    assert set(widths[-10:]) == {2}
    # And given up again, when the cores are far apart.
    widths, _ = lone_caller(learner, {1: 1.8 * run_s, 2: 1.9 * run_s}, 3.0, now)
    assert widths[-20:].count(1) >= 19


@pytest.mark.parametrize("slower", [1.06, 1.5, 10.0])
def test_trials_of_a_width_that_does_not_pay_stay_rare(slower):
    learner = Learner(TWO, [10e6, slower * 10e6])
    widths, _ = lone_caller(learner, {1: 0.01, 2: slower * 0.01}, 60.0)
    assert 2 <= widths.count(2) < 0.01 * len(widths)


@pytest.mark.parametrize("num_streams", [3, 5, 7])
def test_a_wrong_belief_ends_where_the_tree_is_odd(num_streams):
    """Of 7 streams, 4 and 3 are merged: no group of 3 lies around the first one."""
    tree = tree_of(
        partition(Topology.synthetic(1, 1, 1, num_streams), num_streams=num_streams).streams
    )
    widths = sorted({high - low for low, high in tree.leaves})
    believed = {width: 10e6 / min(width, widths[-2]) for width in widths}
    learner = learner_of(tree, list(believed.values()))
    taken, now = [], 0.0
    while now < 8:
        learner.arrive(1, int(1e9 * now) + 1)
        group, is_trial = learner.decide([0] * num_streams, -1, 1, int(1e9 * now) + 1)
        low, high = tree.leaves[group]
        length = 0.01 / (high - low)
        now += length
        learner.learn(group, 0.0, int(1e9 * length), is_trial, int(1e9 * now) + 1)
        taken.append(high - low)
    assert taken[-50:].count(num_streams) >= 48  # but for trials


@pytest.mark.parametrize("callers", [2, 3, 4, 8])
def test_a_crowd_finds_out_that_wide_groups_serve_more_than_was_believed(callers):
    """No wide group is ever free by itself, so requests wait for it."""
    tree = tree_of(partition(TWO_CORES, num_streams=2).streams)
    machine = Machine(tree, lambda cores, now: {1: 0.010, 2: 0.003}[cores])
    policy = Elastic(machine, lambda cores, now: {1: 0.010, 2: 0.015}[cores])
    result = simulate(machine, policy, callers=callers, num_requests=3000)
    widths = [cores for _, _, cores in result.ended[-1000:]]
    assert widths.count(2) >= 0.99 * len(widths)  # trials are less than 1 %


@pytest.mark.parametrize("cold", [0.45, 1.0])
@pytest.mark.parametrize("callers", [2, 3, 8])
def test_a_crowd_goes_wide_though_wide_runs_are_slow_until_narrow_ones_stop(callers, cold):
    """As a model's whose weights fill the cache: two narrow runs read all of them, twice."""
    tree = tree_of(partition(TWO_CORES, num_streams=2).streams)
    alone, crowd, wide = 1.5e-3, 1.95e-3, 0.72e-3
    machine = Machine(tree, lambda cores, now: {1: alone, 2: wide}[cores], crowd / alone - 1, cold)
    policy = Elastic(machine, lambda cores, now: {1: alone, 2: (1 + cold) * wide}[cores])
    result = simulate(machine, policy, callers=callers, num_requests=6000)
    (began, _, _), (end, _, _) = result.ended[-2000], result.ended[-1]
    assert 2000 / (end - began) >= 0.97 / wide


@given(
    offered=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2**31 - 1)), max_size=30),
    lengths=st.tuples(st.floats(0, 1e13), st.floats(0, 1e13)),
    busy=st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)),
    num_waiting=st.integers(1, 2**31),
)
def test_no_load_and_no_length_makes_a_decision_fail(offered, lengths, busy, num_waiting):
    learner = Learner(TWO, lengths)
    now = 0
    for pause, num_in_system in offered:
        now += pause
        learner.arrive(num_in_system, now)
    for may_try in (True, False):
        group, _ = learner.decide(list(busy), -1, num_waiting, now, may_try=may_try)
        assert 0 <= group <= 2


def test_a_request_that_may_not_try_is_not_tried_on():
    learner = Learner(TWO, [10e6, 20e6])
    for number in range(50):
        learner.arrive(1, 10**9 * number + 1)
        assert learner.decide([0, 0], -1, 1, 10**9 * number + 1, may_try=False)[1] is False


@given(
    runs=st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 10**12), st.integers(0, 10**10)), max_size=50
    )
)
def test_estimates_stay_lengths_whatever_runs_tell(runs):
    learner = Learner(TWO, [1e6, 0.6e6])
    now = 1
    for company, length, pause in runs:
        now += pause
        learner.arrive(1, now)
        learner.learn(0, company, length, False, now)
        assert all(0 < ns < 1e13 for pair in learner.lengths for ns in pair)


# --- The simulator --------------------------------------------------------------------------------


def test_the_simulator_agrees_with_queueing_theory():
    """M/D/1: the mean wait is rho / (2 (1 - rho)) runs."""
    machine = Machine(
        tree_of(partition(Topology.synthetic(1, 1, 1, 1)).streams), lambda *_: 1.0, variation=0
    )
    result = simulate(machine, FixedWidth(), poisson(0.5), num_requests=40_000)
    assert result.mean == pytest.approx(1.5, rel=0.03)
    assert simulate(machine, FixedWidth(), callers=3, num_requests=100).mean == (
        pytest.approx(3.0, rel=0.05)
    )


TWO_CORES = Topology.synthetic(1, 1, 1, 2)


def two_cores(num_streams, lengths, shared):
    """A machine of two cores whose runs take so long on 1 and 2 of them."""
    tree = tree_of(partition(TWO_CORES, num_streams=num_streams).streams)
    return Machine(tree, lambda cores, now: lengths[cores], shared)


@pytest.mark.parametrize("load", [0.2, 0.4, 0.6, 0.8, 0.9])
@pytest.mark.parametrize(
    ("wide", "shared"), [(0.51, 0), (0.57, 0), (0.66, 0), (0.75, 0), (0.65, 0.8)]
)
def test_simulated_elastic_is_near_the_better_fixed_setting_at_every_load(load, wide, shared):
    lengths = {1: 0.01, 2: 0.01 * wide}
    capacities = {1: 1 / lengths[2], 2: 2 / lengths[1] / (1 + shared)}
    rate = load * max(capacities.values())

    def mean(num_streams, policy=None):
        machine = two_cores(num_streams, lengths, shared)
        policy = Elastic(machine) if policy else FixedWidth()
        return simulate(machine, policy, poisson(rate), num_requests=8000).mean

    # Beyond 0.98 of its capacity its queue never ends.
    fixed = [mean(count) for count in (1, 2) if rate < 0.98 * capacities[count]]
    assert mean(2, Elastic) <= 1.08 * min(fixed)


@pytest.mark.parametrize("callers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("wide", "shared"), [(0.57, 0), (0.75, 0), (0.58, 0.83), (0.65, 0.8), (1.3, 0)]
)
def test_simulated_elastic_serves_callers_as_the_better_fixed_setting(callers, wide, shared):
    lengths = {1: 0.01, 2: 0.01 * wide}

    def rate(num_streams, policy=None):
        machine = two_cores(num_streams, lengths, shared)
        policy = Elastic(machine) if policy else FixedWidth()
        return simulate(machine, policy, callers=callers, num_requests=2000).throughput

    assert rate(2, Elastic) >= 0.97 * max(rate(1), rate(2))


def test_elastic_follows_cores_that_are_near_and_far_in_turns():
    """Within 3 s, at least 0.95 of what it would serve had it always known."""
    near, far = {1: 0.02, 2: 0.011}, {1: 0.02, 2: 0.021}
    phases = in_phases(lambda c, now: near[c], lambda c, now: far[c], 10.0)
    tree = tree_of(partition(TWO_CORES, num_streams=2).streams)
    machine = Machine(tree, phases)
    result = simulate(machine, Elastic(machine), callers=1, num_requests=2500)
    for phase in range(3):
        best = 1 / min(((near, far)[phase % 2]).values())
        served = [end for end, *_ in result.ended if 10 * phase + 3 <= end < 10 * phase + 10]
        assert len(served) / 7 >= 0.95 * best


@pytest.mark.parametrize(
    ("load", "num_streams", "shared"), [(0.8, 8, 0), (0.8, 8, 0.5), (0.9, 16, 0), (0.95, 32, 0)]
)
def test_simulated_elastic_on_a_large_machine_near_saturation(load, num_streams, shared):
    """Against the fixed setting that is the best at that load, for the same requests."""
    topology = Topology.synthetic(2, 1, 4, 8)
    run_s = amdahl(0.02, 8, 0.01)
    rate = load * 64 / run_s(1, 0.0) / (1 + shared)

    def mean(count, policy=None):
        machine = Machine(tree_of(partition(topology, num_streams=count).streams), run_s, shared)
        policy = Elastic(machine) if policy else FixedWidth()
        return simulate(machine, policy, poisson(rate), num_requests=8000).mean

    assert mean(64, Elastic) <= 1.05 * mean(num_streams)


@pytest.mark.parametrize("callers", [8, 16, 80])
def test_simulated_crowds_on_a_large_machine(callers):
    topology = Topology.synthetic(2, 1, 4, 8)
    run_s = amdahl(0.02, 8, 0.01)
    rates = {}
    for count in (8, 16, 32, 64):
        tree = tree_of(partition(topology, num_streams=count).streams)
        machine = Machine(tree, run_s)
        rates[count] = simulate(
            machine, FixedWidth(), callers=callers, num_requests=1500
        ).throughput
    elastic = simulate(machine, Elastic(machine), callers=callers, num_requests=1500)
    assert elastic.throughput >= 0.95 * max(rates.values())


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
        # What pays for the rest of it is learned from these runs, on a machine that is not ours.
        assert crowded.by_width[1] > 16
        assert sum(crowded.by_width.values()) == crowded.done == 341
        while (
            context._shared.dispatcher.num_busy
        ):  # a worker gives its stream up after the last answer
            threading.Event().wait(0.001)


def test_a_request_that_waits_for_a_wider_group_is_not_kept_waiting_for_ever():
    """What runs beside it was expected to end long ago."""
    with unpinned(2, "elastic") as context:
        long = Engine(models.spin(), None, context=context)
        short = Engine(models.gather(), None, context=context)
        scaling(short, 1_000_000)
        # Takes one stream, for a microsecond it seems. Said last: a belief that is old is tried.
        long._model.set_run_ns([1000, 1000, 1000])
        running = run_until_busy(long)
        try:
            for how in (short.run, lambda inputs: short.submit(inputs).result(60)):
                assert how(item(5))[0] == [5]
        finally:
            running.cancel()
        assert short.stats().by_width == {1: 2}


def test_nobody_waits_for_a_run_of_unknown_length():
    """Of a model that was never measured."""
    with unpinned(2, "elastic") as context:
        long = Engine(models.spin(), None, context=context)
        long._model.set_run_ns([0, 0, 0])
        short = Engine(models.gather(), None, context=context)
        scaling(short, 1_000_000)
        running = run_until_busy(long)
        try:
            assert short.submit(item(5)).result(60)[0] == [5]
        finally:
            running.cancel()


def test_a_model_that_gains_from_width_holds_nobody_of_another_model():
    with unpinned(2, "elastic") as context:
        long = Engine(models.spin(), None, context=context)
        long._model.set_run_ns([10**12] * 3)
        narrow, wide = (Engine(models.gather(), None, context=context) for _ in range(2))
        narrow._model.set_run_ns([1_000_000] * 3)
        wide._model.set_run_ns([10**13, 10**13, 10**12])  # worth waiting for
        running = run_until_busy(long)
        waiting = [narrow.submit(item(number % 6)) for number in range(50)]
        last = wide.submit(item(1))
        try:
            for number, future in enumerate(waiting):
                assert future.result(60)[0] == [number % 6]
        finally:
            running.cancel()
        assert last.result(60)[0] == [1]


def test_a_stream_that_spans_nodes_serves_a_crowd_as_well():
    """Of 2 x 3 cores in 3 streams, the second has cores of both nodes."""
    topology = Topology.synthetic(2, 1, 1, 3)
    with Context(topology=topology, num_streams=3, scheduler="elastic", pin="none") as context:
        long = Engine(models.spin(), None, context=context)
        short = Engine(models.gather(), None, context=context)
        running = []
        for _ in range(3):
            long._model.set_run_ns([1000] * 5)
            running.append(run_until_busy(long))
        running[1].cancel()
        try:
            short._model.set_run_ns([1_000_000] * 5)
            waiting = [short.submit(item(number)) for number in range(3)]
            assert [future.result(60)[0] for future in waiting] == [[0], [1], [2]]
        finally:
            for future in running:
                future.cancel()


@pytest.mark.parametrize("num_streams", [2, 3, 7])
def test_nothing_is_lost_when_requests_are_held(num_streams):
    """Bursts of one to three, so that groups are merged and split all the time."""
    with unpinned(num_streams, "elastic") as context:
        engine = Engine(models.gather(), None, context=context)
        num_groups = 2 * num_streams - 1
        for number in range(1500):
            if number % 20 == 0:
                scaling(engine, 200_000)
            elif number % 20 == 10:  # wide groups are of no use any more
                engine._model.set_run_ns([200_000] * num_groups)
            futures = [engine.submit(item(number + i)) for i in range(1 + number % 3)]
            for i, future in enumerate(futures):
                assert future.result(60)[0] == [number + i]
        stats = engine.stats()
        assert stats.done == 3000
        assert len(stats.by_width) > 1


@pytest.mark.parametrize("num_streams", [2, 4])
def test_requests_that_wake_a_worker_each_run_wide_one_after_the_other(num_streams):
    """Where that serves more than one stream for each: no worker keeps the others from it."""
    with unpinned(num_streams, "elastic") as context:
        engine = Engine(models.spin(), None, context=context)
        leaves = context._layout.tree.leaves
        for _ in range(60):
            engine._model.set_run_ns([10**8 // (high - low) ** 2 for low, high in leaves])
            for future in [engine.submit([STEPS, SQUARE]) for _ in range(2)]:
                future.result(60)
        by_width = engine.stats().by_width
        assert by_width[num_streams] > 60, by_width  # most of 120


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
        "deepsched.scheduling.opening.run_lengths",
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
    assert lengths == [100, 100, 98] and kept.answer["ns"] == {1: 100, 2: 98}
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

    monkeypatch.setattr("deepsched.scheduling.opening.run_lengths", run_lengths_counted)
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
