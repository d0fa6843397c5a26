"""Ping-pong of a cache line: both sides end whatever the other does; figures are of whole games."""

from __future__ import annotations

import os
import threading
import time

import pytest

from deepsched.errors import ThreadError
from deepsched.runtime.pingpong import PingPongTable, round_trip_ns

MS = 1_000_000
LONG = 10_000 * MS
"""Patience that a test never runs into: the other side ends the game."""

CPUS = sorted(os.sched_getaffinity(0))


def in_thread(call, *args):
    """Starts `call` in a thread; returns a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call(*args)))
    thread.start()

    def result():
        thread.join(60)
        assert results, "the call did not end"
        return results[0]

    return result


def test_a_whole_game_gives_a_time_and_ends_both_sides():
    table = PingPongTable()
    played = in_thread(table.pong, LONG)
    began = time.perf_counter_ns()
    trip_ns = table.ping(64, LONG)
    took = time.perf_counter_ns() - began
    assert played() is True
    assert 0 < trip_ns <= took / 64


def test_games_follow_one_another_on_the_same_lines():
    table = PingPongTable()
    for _ in range(5):
        played = in_thread(table.pong, LONG)
        assert table.ping(32, LONG) > 0
        assert played()


def test_a_pinger_whom_nobody_answers_leaves_and_has_no_figure():
    table = PingPongTable()
    assert table.ping(64, MS) == 0


def test_a_ponger_to_whom_nobody_throws_leaves():
    table = PingPongTable()
    assert table.pong(MS) is False


def test_a_ponger_that_comes_after_the_pinger_left_plays_with_the_next_one():
    table = PingPongTable()
    assert table.ping(64, MS) == 0  # leaves a game that is over behind
    played = in_thread(table.pong, LONG)
    assert table.ping(64, LONG) > 0
    assert played()


def test_a_pinger_whose_partner_leaves_in_the_middle_has_no_figure():
    table = PingPongTable()
    played = in_thread(table.pong, 5 * MS)
    # More rounds than fit into either patience.
    assert table.ping(2**31 - 1, 200 * MS) == 0
    assert played() is False


def test_a_game_that_outlasts_the_pingers_patience_ends_for_both_without_a_figure():
    table = PingPongTable()
    played = in_thread(table.pong, LONG)
    assert table.ping(2**31 - 1, 20 * MS) == 0
    played()  # ends at once, whether it came to play or not


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU has no other to play with")
def test_two_cpus_have_a_round_trip():
    trip_ns = round_trip_ns(CPUS[0], CPUS[1], patience_ns=LONG)
    assert trip_ns is not None
    assert 1 < trip_ns < 100_000


def test_a_cpu_that_is_not_there_is_an_error_that_names_it():
    with pytest.raises(ThreadError, match="8191"):
        round_trip_ns(CPUS[0], 8191)


@pytest.mark.parametrize("pair", [(0, 0), (-1, 0), (0, 8192)])
def test_numbers_that_make_no_pair_are_refused(pair):
    with pytest.raises(ValueError, match="two different CPUs"):
        round_trip_ns(*pair)
