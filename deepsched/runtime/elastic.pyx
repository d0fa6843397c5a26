"""State of the elastic scheduler: what runs where, until when, and how busy it has been.

README.md, "How wide". policy.pyx decides on this state. Everything read here is a hint: whatever it
says, a group is used only after it has been claimed.
"""

cimport cython
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.policy cimport PolicyTree, choose_group, roomiest_leaf
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

# All relaxed orders here are of hints: nothing is read through them.

# Expected rest of a claim with no known end: its owner is about to begin, or to leave.
cdef uint64_t BRIEFLY_NS = 10_000


@cython.final
cdef class Elastic:
    """Elastic state of one dispatcher; `groups` are its streams, the leaves of `tree`."""

    def __cinit__(self, PolicyTree tree not None, CoreGroups groups not None):
        self.tree = tree.tree
        self.groups = groups

    cdef void record_arrival(
        self, RunLength* lengths, size_t num_waiting
    ) noexcept nogil:
        """A request arrives and finds `num_waiting` others in the backlog."""
        cdef int group
        cdef uint32_t seen = self.seen.load(memory_order_relaxed)
        cdef int32_t running = self.num_running.load(memory_order_relaxed)
        cdef uint32_t most = 2 * self.tree.num_leaves  # beyond that, more changes nothing
        cdef uint32_t now = 1024 * <uint32_t>(
            min(<size_t>max(running, 0) + num_waiting, <size_t>most)
        )
        # Slow up, fast down: a lone caller after a crowd should soon get all cores.
        seen += (now - seen) // 16 if now >= seen else 0
        seen -= (seen - now) // 4 if now < seen else 0
        self.seen.store(seen, memory_order_relaxed)
        for group in range(self.tree.num_groups):
            self.latest_run_ns[group].store(
                lengths[group].expected_ns.load(memory_order_relaxed), memory_order_relaxed
            )

    cdef int choose(self, int leaf, RunLength* lengths, size_t num_waiting) noexcept nogil:
        """The group around `leaf`, which the caller owns, for the first of `num_waiting`."""
        cdef uint64_t run_ns[MAX_GROUPS]
        cdef int group
        for group in range(self.tree.num_groups):
            run_ns[group] = lengths[group].expected_ns.load(memory_order_relaxed)
        return self.choose_by(leaf, run_ns, num_waiting)

    cdef int choose_by(self, int leaf, uint64_t* run_ns, size_t num_waiting) noexcept nogil:
        """The group around `leaf`, which the caller owns, for the first of `num_waiting`."""
        cdef uint64_t busy[MAX_LEAVES]
        cdef uint64_t free = self.groups.free_groups() | (<uint64_t>1 << leaf)
        cdef uint64_t now = now_ns()
        cdef int other
        if not run_ns[leaf]:
            return leaf
        cdef double waiting = <double>max(num_waiting, <size_t>1)
        cdef double seen = self.seen.load(memory_order_relaxed) / 1024.0
        for other in range(self.tree.num_leaves):
            busy[other] = 0 if free >> other & 1 else self.remaining_ns(other, now)
        return choose_group(&self.tree, run_ns, busy, leaf, waiting, seen)

    cdef uint64_t remaining_ns(self, int leaf, uint64_t now) noexcept nogil:
        cdef uint64_t until = self.until_ns[leaf].load(memory_order_relaxed)
        if until == 0:
            return BRIEFLY_NS
        # Overdue: expected to take as long again as it is late already.
        return max(BRIEFLY_NS, until - now if until > now else now - until)

    cdef uint64_t busy_ns(self, int group, int leaf) noexcept nogil:
        """How long others are expected to use a part of `group`; 0: all but `leaf` is free."""
        cdef uint64_t taken = self.tree.mask[group] & ~(
            self.groups.free_groups() | (<uint64_t>1 << leaf)
        )
        cdef uint64_t longest = 0, now = now_ns()
        cdef int other
        for other in range(self.tree.low[group], self.tree.high[group]):
            if taken >> other & 1:
                longest = max(longest, self.remaining_ns(other, now))
        return longest

    cdef int preferred_group(self, int leaf, size_t num_waiting) noexcept nogil:
        """Group to run the first of `num_waiting` on; if it is busy, the request should wait for
        one as wide. The caller owns the leaf."""
        cdef uint64_t run_ns[MAX_GROUPS]
        cdef int group
        for group in range(self.tree.num_groups):
            run_ns[group] = self.latest_run_ns[group].load(memory_order_relaxed)
        return self.choose_by(leaf, run_ns, num_waiting)

    cdef bint has_room_for(self, int group) noexcept nogil:
        """Whether some group that wide is free."""
        cdef uint64_t free = self.groups.free_groups()
        cdef int other, width = self.tree.high[group] - self.tree.low[group]
        for other in range(self.tree.num_groups - 1, -1, -1):
            if self.tree.high[other] - self.tree.low[other] < width:
                return False
            if free & self.tree.mask[other] == self.tree.mask[other]:
                return True
        return False

    cdef int claim_leaf(self) noexcept nogil:
        """The free leaf with the most room around it, now the caller's; -1: none is free."""
        cdef int leaf
        while True:
            leaf = roomiest_leaf(&self.tree, self.groups.free_groups())
            if leaf < 0 or self.groups.claim_all(self.tree.mask[leaf]):
                return leaf

    cdef int widen(self, int leaf, RunLength* lengths, size_t num_waiting) noexcept nogil:
        """Claims the chosen group around `leaf`, which the caller owns; returns it, or the leaf."""
        cdef int group = self.choose(leaf, lengths, num_waiting)
        if group != leaf and self.groups.claim_all(
            self.tree.mask[group] & ~self.tree.mask[leaf]
        ):
            return group
        return leaf

    cdef void record_start(self, int group, RunLength* lengths) noexcept nogil:
        """The caller, who owns `group`, runs a request there."""
        cdef uint64_t expected_ns = lengths[group].expected_ns.load(memory_order_relaxed)
        cdef uint64_t until = now_ns() + expected_ns if expected_ns else 0
        cdef int leaf
        for leaf in range(self.tree.low[group], self.tree.high[group]):
            self.until_ns[leaf].store(until, memory_order_relaxed)
        # seq_cst: README, "How wide".
        self.num_running.fetch_add(1, memory_order_seq_cst)

    cdef void learn(self, int group, RunLength* lengths, uint64_t length_ns) noexcept nogil:
        """Takes in that a run on `group` took `length_ns`. A lost update does no harm.

        README, "How wide": under load, wide runs may suffer more than narrow ones.
        """
        cdef uint64_t known = lengths[group].expected_ns.load(memory_order_relaxed)
        cdef uint64_t target, length
        cdef int other, level = self.tree.level_of[group]
        if not known:
            return
        # None counts for more than twice the estimate: it may have been preempted.
        known = known - known // 8 + min(length_ns, 2 * known) // 8 + 1
        for other in range(self.tree.num_groups):
            if self.tree.level_of[other] == level:
                if lengths[other].expected_ns.load(memory_order_relaxed):
                    lengths[other].expected_ns.store(known, memory_order_relaxed)
            elif level == 0:
                # While only narrow runs happen, nothing corrects a bad estimate of the wide ones:
                # it decays towards what they gain when nothing else runs.
                length = lengths[other].expected_ns.load(memory_order_relaxed)
                if length:
                    target = <uint64_t>(
                        <double>known * lengths[other].alone_ns / lengths[group].alone_ns
                    )
                    lengths[other].expected_ns.store(
                        length - length // 16 + target // 16 + 1, memory_order_relaxed
                    )

    cdef void record_end(self, int group, int leaf) noexcept nogil:
        """The run is over: releases the group but for `leaf`, which stays the caller's."""
        cdef int other
        for other in range(self.tree.low[group], self.tree.high[group]):
            self.until_ns[other].store(0, memory_order_relaxed)
        # seq_cst, before the look at the backlog: README, "How wide".
        self.num_running.fetch_sub(1, memory_order_seq_cst)
        if group != leaf:
            self.groups.release_all(self.tree.mask[group] & ~self.tree.mask[leaf])
