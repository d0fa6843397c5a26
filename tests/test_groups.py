"""Claim and release of core groups against a plain set, and under contention."""

from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from deepsched.runtime.groups import CoreGroups
from tests.support.threads import in_threads

NUM_GROUPS = 130  # more than two words


class GroupsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.groups = CoreGroups(NUM_GROUPS)
        self.free = set(range(NUM_GROUPS))

    @rule(preferred=st.integers(0, NUM_GROUPS - 1))
    def claim(self, preferred):
        if preferred in self.free:
            assert self.groups.try_claim(preferred) == preferred
            self.free.discard(preferred)
        else:
            self.claim_any(preferred)

    @rule(count=st.integers(1, NUM_GROUPS))
    def claim_many(self, count):
        for _ in range(count):
            self.claim_any(-1)

    def claim_any(self, preferred):
        group = self.groups.try_claim(preferred)
        assert group in self.free if self.free else group is None
        self.free.discard(group)

    @precondition(lambda self: len(self.free) < NUM_GROUPS)
    @rule(data=st.data())
    def give_back(self, data):
        group = data.draw(st.sampled_from(sorted(set(range(NUM_GROUPS)) - self.free)))
        self.groups.give_back(group)
        self.free.add(group)


TestGroupsAgainstSet = GroupsMachine.TestCase


@pytest.mark.parametrize("num_groups", [1, 3, 65])
def test_a_group_never_has_two_owners(num_groups):
    groups = CoreGroups(num_groups)
    owners = [threading.Lock() for _ in range(num_groups)]

    def work(_):
        for _ in range(5_000):
            group = groups.try_claim()
            if group is None:
                continue
            assert owners[group].acquire(blocking=False), f"group {group} has two owners"
            owners[group].release()
            groups.give_back(group)

    in_threads(8, work)
    assert {groups.try_claim() for _ in range(num_groups)} == set(range(num_groups))
    assert groups.try_claim() is None


@pytest.mark.parametrize("preferred", [-2, 3])
def test_groups_that_do_not_exist_are_refused(preferred):
    groups = CoreGroups(3)
    with pytest.raises(ValueError, match="no group"):
        groups.try_claim(preferred)
    with pytest.raises(ValueError, match="no group"):
        groups.give_back(preferred)


def test_thousands_of_groups():
    groups = CoreGroups(5_000)
    assert {groups.try_claim() for _ in range(5_000)} == set(range(5_000))
