"""The lock-free queue against a plain deque, and under contention."""

from __future__ import annotations

import random
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
        assert self.queue.push(item, key=item % 3) == accepted
        if accepted:
            self.model.append(item)

    @rule()
    def pop(self):
        assert self.queue.pop() == (self.model.popleft() if self.model else None)

    @rule(key=st.integers(0, 2))
    def pop_if(self, key):
        fits = bool(self.model) and self.model[0] % 3 == key
        assert self.queue.pop_if(key) == (self.model.popleft() if fits else None)

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


@pytest.mark.parametrize("num_threads", [2, 4])
def test_an_item_is_taken_by_its_key_only_if_it_is_the_oldest(num_threads):
    """Producers take turns in no order; each pop asks for the key of any of them."""
    queue = RequestQueue(8)
    per_producer = 4_000 // num_threads
    rng = random.Random(1)

    def push(item):
        return queue.push(item, key=1 + (item >> 32))

    def pop():
        producer = rng.randrange(num_threads)
        item = queue.pop_if(1 + producer)
        assert item is None or item >> 32 == producer
        return item

    popped = produce_and_consume(push, pop, num_threads, per_producer)
    items = [item for mine in popped for item in mine]
    assert len(items) == len(set(items)) == num_threads * per_producer
    for mine in popped:
        for producer in range(num_threads):
            own = [item for item in mine if item >> 32 == producer]
            assert own == sorted(own)
