"""The lock-free queue against a plain deque, and under contention."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deepsched.runtime.queue import RequestQueue
from tests.support.threads import produce_and_consume


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.queue = RequestQueue(4)
        self.model = deque()

    @rule(item=st.integers(1, 2**63))
    def push(self, item):
        accepted = len(self.model) < 4
        assert self.queue.push(item) == accepted
        if accepted:
            self.model.append(item)

    @rule()
    def pop(self):
        assert self.queue.pop() == (self.model.popleft() if self.model else None)

    @invariant()
    def emptiness_agrees(self):
        assert bool(self.queue) == bool(self.model)


TestQueueAgainstDeque = QueueMachine.TestCase


@pytest.mark.parametrize(("asked", "got"), [(0, 2), (1, 2), (2, 2), (3, 4), (1000, 1024)])
def test_capacity_is_rounded_up_to_a_power_of_two(asked, got):
    assert RequestQueue(asked).capacity == got


@pytest.mark.parametrize("capacity", [2, 64])
@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_items_are_popped_once_in_order_per_producer(capacity, num_threads):
    queue = RequestQueue(capacity)
    per_producer = 20_000 // num_threads
    popped = produce_and_consume(queue.push, queue.pop, num_threads, per_producer)
    counts = Counter(item for mine in popped for item in mine)
    expected = {
        producer << 32 | i + 1 for producer in range(num_threads) for i in range(per_producer)
    }
    assert set(counts) == expected
    assert set(counts.values()) == {1}
    for mine in popped:
        for producer in range(num_threads):
            own = [item for item in mine if item >> 32 == producer]
            assert own == sorted(own)
    assert not queue
