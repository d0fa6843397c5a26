"""A cheap sign that the machine has changed: neighbouring streams that idle see how far apart they
are."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import Context, Engine
from deepsched.runtime.distances import Distances
from deepsched.runtime.estimates import Learner
from deepsched.runtime.policy import PolicyTree
from tests.support import models
from tests.support.requests import item

TWO = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
NEAR, FAR = 112, 471

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two cores of its own"
)


@given(before=st.integers(30, 2000), jitter=st.lists(st.floats(0.81, 1.24), max_size=30))
def test_figures_that_vary_are_no_change(before, jitter):
    distances = Distances(TWO, True)
    distances.note(0, before)
    assert not any(distances.note(1, round(before * share)) for share in jitter)
    assert distances.changes == 0


def test_a_disturbed_figure_is_no_change_and_two_that_agree_are_one():
    distances = Distances(TWO, True)
    for trip_ns in (NEAR, FAR, NEAR, 3 * FAR, FAR):
        assert not distances.note(0, trip_ns)
    assert distances.note(0, FAR)
    assert not distances.note(0, FAR)
    assert distances.changes == 1


def test_each_pair_has_its_own_distance():
    tree = PolicyTree(
        [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4), (0, 4)], [4, 4, 5, 5, 6, 6, -1]
    )
    distances = Distances(tree, True)
    for _ in range(3):
        assert not distances.note(0, NEAR) and not distances.note(3, FAR)
    assert distances.trips == [NEAR, FAR]


def seconds_until_wide(learner, wide_s, begins):
    """How long a lone caller goes on taking one stream, 10 ms each, while two take `wide_s`."""
    now = begins
    for _ in range(100_000):
        learner.arrive(1, int(1e9 * now))
        group, is_trial = learner.decide([0, 0], -1, 1, int(1e9 * now))
        length = wide_s if group == 2 else 0.01
        now += length
        learner.learn(group, 0.0, int(1e9 * length), is_trial, int(1e9 * now))
        if group == 2 and not is_trial:
            break
    return now - begins


def test_a_change_that_was_seen_ends_a_wrong_belief_at_once():
    """Two streams took ten times as long as one, so they are hardly tried any more."""

    def far():
        learner, now = Learner(TWO, [10_000_000, 100_000_000]), 1.0
        while now < 60:
            learner.arrive(1, int(1e9 * now))
            group, is_trial = learner.decide([0, 0], -1, 1, int(1e9 * now))
            length = 0.1 if group == 2 else 0.01
            now += length
            learner.learn(group, 0.0, int(1e9 * length), is_trial, int(1e9 * now))
            if is_trial and now > 30:
                break
        return learner, now

    learner, now = far()
    assert seconds_until_wide(learner, 0.006, now) > 2
    learner, now = far()
    learner.doubt()
    assert seconds_until_wide(learner, 0.006, now) < 0.1


@needs_two_cores
def test_idle_streams_see_that_they_have_come_nearer():
    with Context(scheduler="elastic", num_cores=2) as context:
        engine = Engine(models.gather(), None, context=context)
        distances = context._shared.dispatcher.elastic.distances
        ends = time.monotonic() + 60

        def serve_until(condition):
            while not condition():
                assert time.monotonic() < ends, distances.trips
                engine.run(item(3))

        serve_until(lambda: distances.trips)  # a second after it was made
        assert 10 < distances.trips[0] < 100_000 and distances.changes == 0
        for _ in range(2):
            distances.note(0, 1000 * distances.trips[0])
        assert distances.changes == 1
        serve_until(lambda: distances.changes == 2)
        assert engine.stats().failed == 0


@needs_two_cores
def test_a_change_that_was_seen_has_the_next_request_try_both_streams():
    with Context(scheduler="elastic", num_cores=2) as context:
        engine = Engine(models.gather(), None, context=context)
        distances = context._shared.dispatcher.elastic.distances
        engine._model.set_run_ns([1_000_000, 1_000_000, 10**12])
        engine.run(item(3))
        before = engine.stats().by_width.get(2, 0)
        for trip_ns in (10**6, 10**9, 10**9):  # whatever it was
            distances.note(0, trip_ns)
        assert distances.changes == 1
        engine.run(item(3))
        assert engine.stats().by_width.get(2, 0) == before + 1


def test_streams_without_cores_of_their_own_have_no_distance():
    with Context(scheduler="elastic", num_streams=2, num_cores=2, pin="none") as context:
        distances = context._shared.dispatcher.elastic.distances
        with pytest.raises(ValueError, match="neighbour"):
            distances.note(0, NEAR)
