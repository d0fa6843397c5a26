"""State of the elastic scheduler: what runs where, and until when.

README.md, "How wide". estimates.pyx decides on this state. Everything read here is a hint: whatever
it says, a group is used only after it has been claimed.
"""

cimport cython
from deepsched.runtime.distances cimport Distances
from deepsched.runtime.estimates cimport (
    ALONE, CROWD, MAY_NOT_TRY, Trying, decide, doubt, record_demand,
)
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.groups cimport count_bits
from deepsched.runtime.policy cimport PolicyTree
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

# All relaxed orders here are of hints: nothing is read through them.

# Expected rest of a claim with no known end: its owner is about to begin, or to leave.
cdef uint64_t BRIEFLY_NS = 10_000

# Expected rest of a measurement: nothing is to wait for it.
cdef uint64_t MEASURING_NS = 1_000_000_000


@cython.final
@cython.no_gc_clear  # as Dispatcher
cdef class Elastic:
    """Elastic state of one dispatcher; `groups` are its streams, the leaves of `tree`. `is_pinned`:
    each has a core of its own."""

    def __cinit__(self, PolicyTree tree not None, CoreGroups groups not None, bint is_pinned):
        self.tree = tree.tree
        self.groups = groups
        self.distances = Distances(tree, is_pinned)
        self.demand.born_ns = now_ns()
        self.demand.rolled_ns.store(self.demand.born_ns, memory_order_relaxed)
        self.request_cost.store(1.0, memory_order_relaxed)

    cdef void record_arrival(
        self, Estimates* estimates, size_t num_waiting, double request_cost
    ) noexcept nogil:
        """A request arrives and finds `num_waiting` others in the backlog; it will take so much of a
        run of one: less than 1 where several run together."""
        cdef int32_t running = max(0, self.num_running.load(memory_order_relaxed))
        cdef int company, level
        cdef uint32_t num_changes = self.distances.num_changes.load(memory_order_relaxed)
        if estimates.num_changes.load(memory_order_relaxed) != num_changes:
            estimates.num_changes.store(num_changes, memory_order_relaxed)
            doubt(&self.tree, estimates)
        for level in range(self.tree.num_levels):
            for company in range(CROWD, ALONE - 1, -1):  # alone is what says that it is known
                self.latest.run_ns[company][level].store(
                    estimates.run_ns[company][level].load(memory_order_relaxed),
                    memory_order_relaxed,
                )
                self.latest.learned_ns[company][level].store(
                    estimates.learned_ns[company][level].load(memory_order_relaxed),
                    memory_order_relaxed,
                )
            self.latest.tried_ns[level].store(
                estimates.tried_ns[level].load(memory_order_relaxed), memory_order_relaxed
            )
        self.latest.credit_ns.store(
            estimates.credit_ns.load(memory_order_relaxed), memory_order_relaxed
        )
        self.latest.stays_narrow.store(
            estimates.stays_narrow.load(memory_order_relaxed), memory_order_relaxed
        )
        self.latest.number.store(
            estimates.number.load(memory_order_relaxed), memory_order_relaxed
        )
        self.request_cost.store(request_cost, memory_order_relaxed)
        record_demand(
            &self.demand, <uint32_t>(running + self.in_runs(num_waiting) + 1),
            <uint64_t>(
                request_cost * estimates.run_ns[CROWD][0].load(memory_order_relaxed)
            ),
            now_ns(),
        )

    cdef double in_runs(self, size_t num_requests) noexcept nogil:
        """So many requests that wait, as a number of runs of one that take as long."""
        return num_requests * self.request_cost.load(memory_order_relaxed)

    cdef Decision decide(
        self, Estimates* estimates, int leaf, uint64_t own, size_t num_waiting, Trying trying
    ) noexcept nogil:
        """The group for the first of `num_waiting`, preferably around `leaf` (-1: anywhere). `own`:
        the leaves that the caller has, which count as free."""
        cdef uint64_t busy[MAX_LEAVES]
        cdef uint64_t free = self.groups.free_groups() | own
        cdef uint64_t now = now_ns()
        cdef int other
        for other in range(self.tree.num_leaves):
            busy[other] = 0 if free >> other & 1 else self.remaining_ns(other, now)
        return decide(
            &self.tree, &self.demand, estimates, busy, leaf,
            max(self.in_runs(num_waiting), 1.0), trying, now,
        )

    cdef uint64_t remaining_ns(self, int leaf, uint64_t now) noexcept nogil:
        cdef uint64_t until = self.until_ns[leaf].load(memory_order_relaxed)
        if self.groups.any_reserved(<uint64_t>1 << leaf):
            return MEASURING_NS
        if until == 0:
            return BRIEFLY_NS
        # Overdue: expected to take as long again as it is late already.
        return max(BRIEFLY_NS, until - now if until > now else now - until)

    cdef uint64_t busy_ns(self, int group, uint64_t own) noexcept nogil:
        """How long others are expected to use a part of `group`; 0: all but `own` is free."""
        cdef uint64_t taken = self.tree.mask[group] & ~(self.groups.free_groups() | own)
        cdef uint64_t longest = 0, now = now_ns()
        cdef int other
        for other in range(self.tree.low[group], self.tree.high[group]):
            if taken >> other & 1:
                longest = max(longest, self.remaining_ns(other, now))
        return longest

    cdef bint is_mixed(self, size_t num_waiting) noexcept nogil:
        """Whether some of what waits belongs to another model than the latest one."""
        cdef uint32_t number = self.latest.number.load(memory_order_relaxed)
        return self.num_queued[number % NUM_COUNTERS].load(memory_order_relaxed) < num_waiting

    cdef int claim_leaf(self, size_t num_waiting) noexcept nogil:
        """The free leaf from which to serve what waits, now the caller's; -1: none is free."""
        cdef Decision decision
        cdef int leaf
        if not self.groups.free_groups():
            return -1
        decision = self.decide(&self.latest, -1, 0, num_waiting, MAY_NOT_TRY)
        # Where it is busy and what waits is to be held, that is for the leaf's worker to find out.
        leaf = self.tree.low[decision.group]
        return leaf if self.groups.claim_all(self.tree.mask[leaf]) else self.groups.claim(-1)

    cdef Decision claim(
        self, Estimates* estimates, int preferred, Trying trying
    ) noexcept nogil:
        """Claims the group for a request that arrives while nobody waits; group -1: none is free,
        or the request had better wait.

        `preferred`: the leaf that the caller is on; -1: any.
        """
        cdef Decision decision
        cdef uint64_t free
        cdef int attempt
        for attempt in range(2):
            free = self.groups.free_groups()
            if not free:
                break
            if preferred >= 0 and not free >> preferred & 1:
                preferred = -1
            decision = self.decide(estimates, preferred, 0, 1, trying)
            if self.groups.claim_all(self.tree.mask[decision.group]):
                return decision
            if self.tree.mask[decision.group] & ~free:
                break  # it had better wait
            # Another caller was faster. There may be room elsewhere, and a queued request would
            # make all that come after it wait, too.
        decision.group = -1
        decision.is_trial = False
        return decision

    cdef Decision widen(
        self, int leaf, uint64_t own, Estimates* estimates, size_t num_waiting, Trying trying
    ) noexcept nogil:
        """Claims the chosen group around `leaf`; if that fails, it is the leaf. The caller owns `own`,
        `leaf` among them; what the group has no part in is released."""
        cdef Decision decision = self.decide(estimates, leaf, own, num_waiting, trying)
        cdef uint64_t rest = self.tree.mask[decision.group] & ~own
        if not self.tree.mask[decision.group] & self.tree.mask[leaf] or (
            rest and not self.groups.claim_all(rest)
        ):
            decision.group = leaf
            decision.is_trial = False
        if own & ~self.tree.mask[decision.group]:
            self.groups.release_all(own & ~self.tree.mask[decision.group])
        return decision

    cdef double company(self, int group) noexcept nogil:
        """The share of the leaves outside of `group` that are taken."""
        cdef int others = self.tree.num_leaves - (self.tree.high[group] - self.tree.low[group])
        cdef uint64_t free = self.groups.free_groups() & ~self.tree.mask[group]
        return <double>(others - count_bits(free)) / others if others else 0.0

    cdef double record_start(self, int group, Estimates* estimates, double cost) noexcept nogil:
        """The caller, who owns `group`, begins a run there that takes as long as `cost` of one.
        Returns the company it has."""
        cdef int leaf, level = self.tree.level_of[group]
        cdef double company = self.company(group)
        cdef double alone = estimates.run_ns[ALONE][level].load(memory_order_relaxed)
        cdef double crowd = estimates.run_ns[CROWD][level].load(memory_order_relaxed)
        cdef uint64_t expected_ns = <uint64_t>(cost * (alone + company * (crowd - alone)))
        cdef uint64_t until = now_ns() + expected_ns
        for leaf in range(self.tree.low[group], self.tree.high[group]):
            self.until_ns[leaf].store(until, memory_order_relaxed)
        # seq_cst: README, "How wide".
        self.num_running.fetch_add(1, memory_order_seq_cst)
        return company

    cdef void record_end(self, int group, uint64_t kept) noexcept nogil:
        """The run is over: releases the group's leaves but for `kept`, which stay the caller's."""
        cdef int other
        for other in range(self.tree.low[group], self.tree.high[group]):
            self.until_ns[other].store(0, memory_order_relaxed)
        # seq_cst, before the look at the backlog: README, "How wide".
        self.num_running.fetch_sub(1, memory_order_seq_cst)
        if self.tree.mask[group] & ~kept:
            self.groups.release_all(self.tree.mask[group] & ~kept)
