"""The backlog against a plain model: order, the bound, no starvation."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deepsched.runtime.backlog import Backlog
from tests.support.threads import produce_and_consume

CAPACITY = 5  # no power of two: the bound is exact
PRIORITIES = (1, 0, -1)


class BacklogMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.backlog = Backlog(CAPACITY)
        self.waiting = {priority: deque() for priority in PRIORITIES}
        self.num_pushed = self.highest = 0

    @property
    def depth(self):
        return sum(map(len, self.waiting.values()))

    @rule(priority=st.sampled_from(PRIORITIES))
    def push(self, priority):
        accepted = self.depth < CAPACITY
        self.num_pushed += 1
        assert self.backlog.push(self.num_pushed, priority) == accepted
        if accepted:
            self.waiting[priority].append(self.num_pushed)
            self.highest = max(self.highest, self.depth)

    @rule()
    def pop_takes_the_oldest_of_a_class(self):
        item = self.backlog.pop()
        heads = {items[0]: items for items in self.waiting.values() if items}
        if heads:
            heads[item].popleft()
        else:
            assert item is None

    @invariant()
    def what_it_says_of_itself_agrees(self):
        assert bool(self.backlog) == bool(self.depth)
        assert self.backlog.depth == self.depth
        assert self.backlog.max_depth == self.highest


TestBacklogAgainstDeques = BacklogMachine.TestCase


def test_urgent_goes_first_and_no_class_starves():
    backlog = Backlog(1000)
    for i in range(200):
        for priority in PRIORITIES:
            backlog.push((priority + 2) << 32 | i + 1, priority)
    classes = [(backlog.pop() >> 32) - 2 for _ in range(160)]
    assert Counter(classes) == {1: 140, 0: 10, -1: 10}
    for start in range(0, 160, 16):
        assert set(classes[start : start + 16]) == set(PRIORITIES)


def test_without_urgent_ones_normal_goes_before_background():
    backlog = Backlog(10)
    for priority in (-1, 0, -1, 0):
        backlog.push(priority + 2, priority)
    assert [backlog.pop() for _ in range(4)] == [2, 2, 1, 1]


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_nothing_is_lost_and_the_bound_holds_under_contention(capacity):
    backlog = Backlog(capacity)
    per_producer, num_threads = 3_000, 4
    depths = []

    def pop():
        depths.append(backlog.depth)
        return backlog.pop()

    popped = produce_and_consume(
        lambda item: backlog.push(item, item % 3 - 1), pop, num_threads, per_producer
    )
    assert max(depths) <= capacity
    counts = Counter(item for mine in popped for item in mine)
    assert len(counts) == per_producer * num_threads
    assert set(counts.values()) == {1}
    assert backlog.max_depth <= capacity
    assert backlog.depth == 0
    assert not backlog
