"""Figures are compared with figures of the same state of the machine, and with no others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched.benchmark.engines import EngineSetting
from deepsched.benchmark.measurement import Measurement
from deepsched.benchmark.report import Asked, report_sweep, report_together
from deepsched.benchmark.sweep import Point, Sweep
from deepsched.benchmark.usage import Usage
from deepsched.cli.benchmark_text import print_comparison, print_sweep
from deepsched.errors import ThreadError
from deepsched.machine import state
from deepsched.machine.state import (
    Conditions,
    StateWatch,
    by_state,
    neighbour_trips_ns,
    states_of,
    summarize,
)
from deepsched.scheduler import Scheduler


def seen(before, after=None, others=0.0):
    return Conditions((before,), (before if after is None else after,), others)


NEAR, FAR = seen(110.0, 113.0), seen(470.0, 489.0)
MOVED = seen(110.0, 470.0)


def names(*conditions):
    return [it and it.name for it in states_of(conditions)]


def test_two_distances_are_near_and_far_and_a_change_is_neither():
    assert names(FAR, NEAR, MOVED, NEAR) == ["far", "near", None, "near"]


def test_a_single_distance_has_no_name_but_its_figure():
    (only,) = states_of([NEAR])
    assert str(only) == "112 ns"


def test_more_distances_are_numbered_the_nearest_first():
    assert names(FAR, NEAR, seen(1500.0)) == ["state 2", "state 1", "state 3"]


def test_neighbours_that_came_are_a_state_of_their_own():
    quiet, busy = states_of([NEAR, seen(110.0, others=0.5)])
    assert quiet != busy
    assert str(busy) == f"{str(quiet)} beside others"


@pytest.mark.parametrize("figures", [(math.nan, 110.0), (110.0, math.nan)])
def test_what_could_not_be_seen_is_in_no_state(figures):
    assert names(NEAR, seen(*figures)) == ["", None]


def test_machines_without_pairs_are_in_one_state():
    one_core = Conditions((), (), None)
    (first, second) = states_of([one_core, one_core])
    assert first == second


def test_each_pair_counts_by_itself():
    """Of four cores the second pair moved: the mean hardly changes."""
    first = Conditions((110.0, 110.0, 470.0), (110.0, 110.0, 470.0), 0.0)
    second = Conditions((110.0, 470.0, 110.0), (110.0, 470.0, 110.0), 0.0)
    (one, other) = states_of([first, second])
    assert {one.name, other.name} == {"near", "far"}


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(1, 1.2), st.floats(1, 1.2))),
    st.floats(2.5, 10),
)
def test_noise_parts_no_state_and_hides_no_change(rounds, ratio):
    distances = {False: 100.0, True: 100.0 * ratio}
    conditions = [seen(distances[a] * p, distances[b] * q) for a, b, p, q in rounds]
    found = states_of(conditions)
    for (a, b, _, _), state_found in zip(rounds, found, strict=True):
        assert (state_found is None) == (a != b)
    for is_far in (False, True):
        alike = {it for (a, b, _, _), it in zip(rounds, found, strict=True) if a == b == is_far}
        assert len(alike) <= 1
    assert len(set(found) - {None}) == len({a for a, b, _, _ in rounds if a == b})


def test_results_are_grouped_the_commonest_state_first():
    grouped = by_state([FAR, NEAR, MOVED, NEAR], ["far 1", "near 1", "moved", "near 2"])
    assert list(grouped.values()) == [["near 1", "near 2"], ["far 1"]]


def test_the_summary_says_what_never_came():
    assert "no other came" in summarize(states_of([NEAR, NEAR]))
    assert "changed meanwhile or not seen: 1" in summarize(states_of([NEAR, FAR, MOVED]))


def test_a_watch_sees_this_machine_before_and_after():
    conditions = StateWatch().end()
    assert len(conditions.before_ns) == len(conditions.after_ns)
    assert StateWatch([0]).end().before_ns == ()


def test_where_no_thread_can_be_pinned_there_is_no_distance(monkeypatch):
    def refuse(a, b):
        raise ThreadError(1, "Operation not permitted")

    monkeypatch.setattr(state, "round_trip_ns", refuse)
    assert neighbour_trips_ns([0, 1]) == ()


def test_hundreds_of_cores_are_looked_at_in_some_places_only(monkeypatch):
    monkeypatch.setattr(state, "round_trip_ns", lambda a, b: 100)
    assert 8 <= len(neighbour_trips_ns(range(192))) <= 16


# --- Reports ----------------------------------------------------------------------------------

ASKED = Asked("m.onnx", Scheduler.single_stream, None, 1.0)


def measured(conditions, callers=1):
    return (
        EngineSetting("deepsched", 1, 2, 1, Scheduler.single_stream),
        Measurement(
            callers,
            1,
            1.0,
            np.array([1.0, 2.0]),
            usage=Usage(1.0, 1.0, 0.0, 10**8, 0.0, 0.0),
            conditions=conditions,
        ),
    )


def test_reports_that_are_compared_name_states_in_common():
    reports = report_together(ASKED, [measured(it) for it in (NEAR, FAR, MOVED)])
    assert [it["state"] for it in reports] == ["near (112 ns)", "far (480 ns)", None]


def comparison(*conditions):
    reports = report_together(ASKED, [measured(it) for it in conditions])
    return {**reports[-1], "measurements": reports, "interrupted": False}


def test_schedulers_are_compared_in_one_state_only(capsys):
    print_comparison(comparison(NEAR, NEAR))
    assert "has the lowest latency" in capsys.readouterr().out
    for conditions in ((NEAR, FAR), (NEAR, MOVED), (MOVED, MOVED)):
        print_comparison(comparison(*conditions))
        text = capsys.readouterr().out
        assert "has the lowest latency" not in text
        assert "different states of the machine" in text


def test_a_sweep_shows_states_and_says_what_does_not_compare(capsys):
    points = [Point({"callers": 1}, *measured(it)) for it in (NEAR, FAR, MOVED)]
    print_sweep(report_sweep(ASKED, Sweep({"callers": [1]}, tuple(points))))
    text = capsys.readouterr().out
    assert "Compare only figures of one state" in text
    assert "?: the state changed meanwhile" in text
    print_sweep(report_sweep(ASKED, Sweep({"callers": [1]}, (points[0],))))
    assert "Compare only" not in capsys.readouterr().out
