"""Turns of a crowd: each step against what README.md promises, and real crowds that come and go."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from onnx import helper

from deepsched import Engine
from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, InputError
from deepsched.runtime.turnstile import Caller, Turnstile
from tests.support import models
from tests.support.batches import let_run_together
from tests.support.contexts import unpinned
from tests.support.requests import BAD, SQUARE, item
from tests.support.threads import in_threads

NUM_STREAMS = 2
MOST = NUM_STREAMS + 1
LEASE_NS = 200_000
OVERDUE_NS = 1_000_000

crowds = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="without a GIL nobody takes turns"
)


class TurnstileMachine(RuleBasedStateMachine):
    """Callers that arrive, stop calling and give up, in any order and at any time."""

    def __init__(self):
        super().__init__()
        turnstile = self.turnstile = Turnstile(NUM_STREAMS)
        self.callers = [Caller(turnstile) for _ in range(8)]
        self.now = 1
        self.most = MOST
        self.in_line = {1: [], 0: [], -1: []}  # who waits, in the order of arrival
        self.granted = {}  # holder: when
        self.is_settled = True

    def waiting(self):
        return [it for it in self.callers if it.state in ("waits", "watches")]

    def settle(self):
        """After a step: those who have been let in were the first of their lines."""
        for line in self.in_line.values():
            left = [it for it in line if it.state in ("waits", "watches")]
            for it in line[: len(line) - len(left)]:
                self.granted[it] = self.now
            assert line[len(line) - len(left) :] == left
            line[:] = left
        self.is_settled = True

    @precondition(lambda self: len(self.waiting()) < len(self.callers))
    @rule(data=st.data(), priority=st.sampled_from([1, 0, -1]), most=st.integers(1, MOST))
    def arrive(self, data, priority, most):
        outside = [it for it in self.callers if it not in self.waiting()]
        caller = data.draw(st.sampled_from(outside))
        self.granted.pop(caller, None)
        self.in_line[priority].append(caller)
        self.most = most
        caller.arrive(priority, most, self.now)
        self.settle()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def give_up(self, data):
        caller = data.draw(st.sampled_from(self.waiting()))
        for line in self.in_line.values():
            if caller in line:
                line.remove(caller)
        assert caller.withdraw(self.now)
        assert caller.state == "out"
        self.settle()

    @rule(data=st.data())
    def give_up_too_late(self, data):
        outside = [it for it in self.callers if it not in self.waiting()]
        if outside:
            assert not data.draw(st.sampled_from(outside)).withdraw(self.now)

    @rule(ns=st.integers(0, 2 * (LEASE_NS + OVERDUE_NS)))
    def pass_time(self, ns):
        self.now += ns
        self.is_settled = False

    @rule()
    def look(self):
        self.callers[0].look(self.now)
        self.settle()

    @rule()
    def dismiss(self):
        self.turnstile.dismiss_all()
        assert not self.waiting()
        for line in self.in_line.values():
            line.clear()

    @invariant()
    def no_more_hold_a_lease_than_may(self):
        assert sum(it.state == "holds" for it in self.callers) <= MOST

    @invariant()
    def one_of_those_who_wait_watches(self):
        states = [it.state for it in self.callers]
        assert states.count("watches") == min(1, len(self.waiting()))
        assert self.turnstile.num_parked == len(self.waiting())

    @invariant()
    def nobody_waits_for_a_lease_that_is_free_or_whose_holder_has_stopped(self):
        if self.waiting() and self.is_settled:
            holders = [it for it in self.callers if it.state == "holds"]
            assert len(holders) >= self.most
            assert all(self.now < self.granted[it] + LEASE_NS + OVERDUE_NS for it in holders)


TestTurnstile = TurnstileMachine.TestCase


def test_no_rank_starves():
    """One lease, and urgent callers who are always back: of 16 turns one is each other rank's."""
    turnstile = Turnstile(NUM_STREAMS)
    urgent = [Caller(turnstile), Caller(turnstile)]
    others = {Caller(turnstile): 0, Caller(turnstile): -1}
    for caller in urgent:
        caller.arrive(1, 1, 1)
    for caller, priority in others.items():
        caller.arrive(priority, 1, 1)
    served = set()
    for _ in range(16):
        (holder,) = [it for it in (*urgent, *others) if it.state == "holds"]
        served.add(holder)
        holder.arrive(1, 1, 1)
    assert served >= set(others)


# --- Real crowds --------------------------------------------------------------------------------


def turnstile_of(engine):
    return engine.context._shared.dispatcher.turnstile


@pytest.fixture
def small():
    """An engine on two streams whose runs take microseconds."""
    with unpinned(NUM_STREAMS) as context:
        engine = Engine(models.gather(), None, context=context)
        for _ in range(20):
            engine.run(item(0))
        yield engine


def call_until(engine, is_over, per_call=lambda engine, i: engine.run(item(i))):
    """A crowd that calls until `is_over(its turnstile)`, each with results of its own."""
    turnstile = turnstile_of(engine)

    def work(i):
        deadline = time.monotonic() + 60
        while not is_over(turnstile):
            assert time.monotonic() < deadline
            for _ in range(50):
                per_call(engine, i)

    in_threads(16, work)
    assert turnstile.num_parked == 0


@crowds
def test_a_crowd_takes_turns_and_each_gets_its_own_results(small):
    def call(engine, i):
        assert engine.run(item(i))[0].tolist() == [i]

    call_until(small, lambda turnstile: turnstile.num_turns > 500, call)
    assert small.stats().failed == 0


def test_a_few_callers_never_wait_for_a_turn(small):
    in_threads(2 * NUM_STREAMS, lambda i: [small.run(item(i)) for _ in range(2000)])
    assert turnstile_of(small).num_turns == 0


def test_callers_that_do_other_things_between_their_calls_take_no_turns(small):
    """A lease would lie idle while its holder sleeps."""

    def work(i):
        for _ in range(100):
            small.run(item(i))
            time.sleep(0.0002)

    in_threads(16, work)
    assert turnstile_of(small).num_turns == 0


def test_callers_of_long_runs_take_no_turns():
    with unpinned(NUM_STREAMS) as context:
        engine = Engine(models.spin(), None, context=context)
        inputs = [np.array(100, np.int64), SQUARE]
        in_threads(16, lambda _: [engine.run(inputs) for _ in range(5)])
        assert turnstile_of(engine).num_turns == 0


def chain(num_nodes):
    """-x, or x, after so many steps."""
    nodes = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(num_nodes)]
    return models.make(
        nodes, [models.tensor("x0", ["n", "k"])], [models.tensor(f"x{num_nodes}", ["n", "k"])]
    )


@crowds
@pytest.mark.parametrize("why", ["each has another shape", "each is as large as a run may be"])
def test_a_crowd_whose_requests_may_not_run_together_takes_turns(why):
    """Runs of about 16 us, whose callers take no turns if others may run with theirs."""
    with unpinned(NUM_STREAMS) as context:

        def opened(num_nodes):
            engine = Engine(chain(num_nodes), None, context=context, batching="off")
            for _ in range(200):
                engine.run([np.ones((1, 1), np.float32)])
            return engine

        ns = {count: opened(count)._model.typical_ns for count in (10, 60)}
        per_node = max(1, (ns[60] - ns[10]) // 50)
        engine = opened(10 + max(0, 16_000 - ns[10]) // per_node)
        let_run_together(engine)
        shapes = [(1, 1 + i) if "shape" in why else (16, 1) for i in range(16)]

        def call(engine, i):
            x = np.full(shapes[i], i, np.float32)
            assert np.abs(engine.run([x])[0]).tolist() == x.tolist()

        call_until(engine, lambda turnstile: turnstile.num_turns > 300, call)


@crowds
def test_the_others_go_on_where_holders_stop_calling(small):
    """Each pauses, most likely in the middle of its lease, and longer than one lasts."""
    pauses = threading.Event()

    def call(engine, i):
        for _ in range(random.randrange(100)):
            engine.run(item(i))
        pauses.wait(0.003)

    call_until(small, lambda turnstile: turnstile.num_turns > 100, call)


@crowds
def test_a_failing_call_keeps_nobody_waiting(small):
    def call(engine, i):
        with pytest.raises(InferenceError):
            engine.run(BAD)
        with pytest.raises(InputError):
            engine.run([])
        assert engine.run(item(i))[0].tolist() == [i]

    call_until(small, lambda turnstile: turnstile.num_turns > 100, call)


@crowds
def test_parked_callers_leave_when_their_time_is_over(small):
    ends = {"done": 0, "expired": 0}
    lock = threading.Lock()

    def call(engine, i):
        try:
            outputs = engine.run(item(i), timeout=random.choice([1e-4, 1e-3, 60]))
            assert outputs[0].tolist() == [i]
            end = "done"
        except DeadlineExceeded:
            end = "expired"
        with lock:
            ends[end] += 1

    done_before = small.stats().done
    call_until(small, lambda turnstile: turnstile.num_turns > 300 and ends["expired"] > 20, call)
    stats = small.stats()
    # A request may end just as its time is over.
    assert stats.done - done_before >= ends["done"]
    assert stats.done - done_before + stats.expired == sum(ends.values())


@crowds
def test_closing_sends_all_who_wait_away(small):
    is_crowd = threading.Event()

    def work(i):
        if i == 16:
            assert is_crowd.wait(60)
            small.close()
            return
        with pytest.raises(ClosedError):
            while True:
                assert small.run(item(i))[0].tolist() == [i]
                if turnstile_of(small).num_parked:
                    is_crowd.set()

    in_threads(17, work)
    assert turnstile_of(small).num_parked == 0


@crowds
def test_ctrl_c_reaches_a_crowd_whose_main_thread_is_parked(small):
    is_over = threading.Event()

    def call_on(i):
        while not is_over.is_set():
            small.run(item(i))

    threads = [threading.Thread(target=call_on, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                small.run(item(0))
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        signal.signal(signal.SIGALRM, old)
    assert turnstile_of(small).num_parked == 0
    assert small.run(item(7))[0].tolist() == [7]
