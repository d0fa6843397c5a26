"""What the elastic policy believes: run lengths with an age, and the load. Nothing is believed for
ever: README.md, "How wide".

All atomics here are relaxed: each is an estimate by itself, nothing is read through it, and an
update that is lost to another thread does no harm. Time comes from the caller, so the simulator
(bench/simulate.py) learns by the same code.
"""

cimport cython
from deepsched.runtime.policy cimport (
    MAX_LEAVES, choose_group, length_at, make_plan, price_of_time,
)
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed

# By what share of its error a run moves an estimate: more, the older that is. What nobody has
# looked at for OLD_NS says little; and beside thousands of runs a second, single ones are noise.
cdef double LEAST_GAIN = 1 / 64.0
cdef double MOST_GAIN = 1 / 2.0
cdef double OLD_NS = 1_000_000_000

# A width is tried again when its estimate is so old, in time and in runs.
cdef double TRIAL_AGE_NS = 250_000_000
cdef double TRIAL_AGE_RUNS = 16

# Of the time that runs take, trials may lose this share. One that costs something counts for more
# than a whole run, so that trials are rarer than the slowest 1 % of requests.
cdef double TRIAL_SHARE = 0.01
cdef double COSTLY_TRIAL = 1.25
cdef double MOST_CREDIT = 4  # runs
cdef double MOST_CHARGE = 16  # runs; more would be an accident, and end trials for minutes
cdef double EASY_SPARE = 0.5  # with less of its capacity left, an open system feels what is lost

# A wide group whose cores have served narrow runs has its threads asleep and the caches full of what
# those read: the first runs there tell little. (33 MB of weights on two cores: 1.2 times the length
# of the tenth, and twice as long as once none is narrow.) So it is tried by runs on end, of which
# the last ones tell, until one shows that the width is no good: where others wait, and it would take
# less leaf time if it were shorter by WARMTH.
cdef double WARMTH = 0.5
cdef int32_t WARMING_RUNS = 12
cdef int32_t TELLING_RUNS = 4
cdef double TELLING_GAIN = 1 / 4.0
cdef double HOPELESS = 0.5  # what it loses, as a share of a run of the plan's width

# The load is averaged over so many runs, and at least over this time.
cdef double WINDOW_RUNS = 16
cdef double WINDOW_NS = 2_000_000

# Arrivals over which the most requests in the system are kept; a power of two.
cdef uint32_t NUM_REMEMBERED = 8


# --- Run lengths ------------------------------------------------------------------------------


cdef void believe(Estimates* estimates, int level, double run_ns, uint64_t now) noexcept nogil:
    """A length that was measured before anything was served: counts until runs tell. 0: unknown."""
    cdef int company
    for company in range(2):
        estimates.run_ns[company][level].store(run_ns, memory_order_relaxed)
        estimates.learned_ns[company][level].store(now if run_ns else 0, memory_order_relaxed)


cdef void doubt(const Tree* tree, Estimates* estimates) noexcept nogil:
    """The machine has changed: what several leaves together take counts until runs tell, each of
    which counts for much, and they are tried at once, whatever earlier trials have cost."""
    cdef int company, level
    for level in range(1, tree.num_levels):
        for company in range(2):
            estimates.learned_ns[company][level].store(0, memory_order_relaxed)
        estimates.tried_ns[level].store(0, memory_order_relaxed)
    if estimates.credit_ns.load(memory_order_relaxed) < 0:
        estimates.credit_ns.store(0, memory_order_relaxed)


cdef void read_lengths(const Tree* tree, Estimates* estimates, Lengths* lengths) noexcept nogil:
    cdef int level
    for level in range(tree.num_levels):
        lengths.alone[level] = estimates.run_ns[ALONE][level].load(memory_order_relaxed)
        lengths.crowd[level] = estimates.run_ns[CROWD][level].load(memory_order_relaxed)


cdef void follow(
    Estimates* estimates, int level, double company, double length_ns, double least_gain,
    uint64_t now,
) noexcept nogil:
    """Moves both lengths of a level towards what a run in this company told."""
    cdef double alone = estimates.run_ns[ALONE][level].load(memory_order_relaxed)
    cdef double crowd = estimates.run_ns[CROWD][level].load(memory_order_relaxed)
    cdef int kind = CROWD if company >= 0.5 else ALONE
    cdef double learned_ns = estimates.learned_ns[kind][level].load(memory_order_relaxed)
    cdef double age = <double>now - learned_ns  # negative if another thread was quicker to tell
    cdef double gain, error, expected = alone + company * (crowd - alone)
    estimates.learned_ns[kind][level].store(now, memory_order_relaxed)
    if not alone:
        estimates.run_ns[ALONE][level].store(length_ns, memory_order_relaxed)
        estimates.run_ns[CROWD][level].store(length_ns, memory_order_relaxed)
        return
    # A run may take too long by accident, being preempted, but hardly too short: none counts for
    # more than twice what was expected, and one that ends early is believed the more.
    error = min(length_ns, 2 * expected) - expected
    gain = max(least_gain, min(MOST_GAIN if error > 0 else 1.0, age / OLD_NS))
    # Each by its share in the expectation, so that together they make up `gain` of the error.
    gain *= error / ((1 - company) * (1 - company) + company * company)
    estimates.run_ns[ALONE][level].store(
        max(1.0, alone + gain * (1 - company)), memory_order_relaxed
    )
    estimates.run_ns[CROWD][level].store(max(1.0, crowd + gain * company), memory_order_relaxed)


cdef void learn(
    const Tree* tree, Demand* demand, Estimates* estimates, int group, double company,
    uint64_t length_ns, bint is_trial, uint64_t now,
) noexcept nogil:
    """A run on `group`, beside which a share `company` of the other leaves was busy, has ended."""
    cdef int level = tree.level_of[group]
    cdef Lengths lengths
    cdef Load load
    cdef Plan plan
    cdef double best_ns, lost_ns
    cdef int32_t num_left
    # Added and subtracted, not stored: the bound must not lose a charge to another thread.
    if estimates.credit_ns.load(memory_order_relaxed) < <int64_t>(MOST_CREDIT * length_ns):
        estimates.credit_ns.fetch_add(<int64_t>(TRIAL_SHARE * length_ns), memory_order_relaxed)
    if not is_trial:
        if estimates.num_settling.load(memory_order_relaxed) > 0:
            estimates.num_settling.fetch_sub(1, memory_order_relaxed)
            read_lengths(tree, estimates, &lengths)
            best_ns = length_at(&lengths, level, company)
            estimates.credit_ns.fetch_sub(
                <int64_t>(min(<double>length_ns, 2 * best_ns) - best_ns), memory_order_relaxed
            )
        follow(estimates, level, company, <double>length_ns, LEAST_GAIN, now)
        return
    estimates.num_settling.store(WARMING_RUNS, memory_order_relaxed)
    read_lengths(tree, estimates, &lengths)
    load = read_load(demand)
    plan = make_plan(tree, &lengths, &load)
    best_ns = length_at(&lengths, plan.level, plan.company[plan.level])
    lost_ns = <double>length_ns - best_ns + price_of_time(tree, &plan, 1) * (
        <double>length_ns * tree.width[level] - best_ns * tree.width[plan.level]
    )
    num_left = demand.trial_left.load(memory_order_relaxed) if level > plan.level else 0
    # The first run on end is the slowest, and ends nothing.
    if (
        TELLING_RUNS <= num_left < WARMING_RUNS + TELLING_RUNS - 1
        and lost_ns > HOPELESS * best_ns
    ):
        demand.trial_left.store(0, memory_order_relaxed)
        num_left = 0
    if num_left < TELLING_RUNS:
        follow(estimates, level, company, <double>length_ns, TELLING_GAIN, now)
    if lost_ns > 0.05 * best_ns and num_left < TELLING_RUNS:
        lost_ns = max(COSTLY_TRIAL * best_ns, min(lost_ns, MOST_CHARGE * best_ns))
    # Of requests that come at random, the less capacity is spare the more wait for what is lost.
    if plan.is_open and plan.spare < EASY_SPARE:
        lost_ns *= EASY_SPARE / plan.spare
    if lost_ns > 0:
        estimates.credit_ns.fetch_sub(<int64_t>lost_ns, memory_order_relaxed)


# --- Load -------------------------------------------------------------------------------------


cdef void record_demand(
    Demand* demand, uint32_t num_in_system, uint64_t run_ns, uint64_t now
) noexcept nogil:
    """A request arrives, of a model whose runs take `run_ns` on a leaf in a crowd, and is one of
    `num_in_system`."""
    cdef uint64_t rolled_ns = demand.rolled_ns.load(memory_order_relaxed)
    cdef double passed_ns, window_ns, gain, offered
    cdef uint32_t most = max(num_in_system, demand.most.load(memory_order_relaxed))
    if demand.num_arrived.fetch_add(1, memory_order_relaxed) % NUM_REMEMBERED == 0:
        demand.most_before.store(demand.most.load(memory_order_relaxed), memory_order_relaxed)
        most = num_in_system
    demand.most.store(most, memory_order_relaxed)
    demand.arrived_ns.fetch_add(run_ns, memory_order_relaxed)
    passed_ns = <double>now - <double>rolled_ns
    window_ns = max(WINDOW_NS, WINDOW_RUNS * run_ns)
    if passed_ns < window_ns / 8 or not demand.rolled_ns.compare_exchange_strong(
        rolled_ns, now, memory_order_relaxed
    ):
        return
    # All that is known at first, then a moving average.
    gain = max(passed_ns / (passed_ns + window_ns), passed_ns / (<double>now - demand.born_ns))
    offered = demand.offered.load(memory_order_relaxed)
    offered += gain * (
        <double>demand.arrived_ns.exchange(0, memory_order_relaxed) / passed_ns - offered
    )
    demand.offered.store(offered, memory_order_relaxed)


cdef Load read_load(Demand* demand) noexcept nogil:
    cdef Load load
    load.offered = demand.offered.load(memory_order_relaxed)
    load.population = max(
        demand.most.load(memory_order_relaxed), demand.most_before.load(memory_order_relaxed)
    )
    return load


# --- Decisions --------------------------------------------------------------------------------


cdef bint is_trying(Demand* demand, uint64_t now) noexcept nogil:
    """Whether requests of a model are to take the level of a trial."""
    return (
        demand.trial_left.load(memory_order_relaxed) > 0
        and now < demand.trial_until_ns.load(memory_order_relaxed)
    )


cdef int group_around(const Tree* tree, int leaf, int level) noexcept nogil:
    """The widest group around `leaf` that is not above `level`."""
    cdef int group = leaf
    while tree.parent[group] >= 0 and tree.level_of[tree.parent[group]] <= level:
        group = tree.parent[group]
    return group


cdef bint is_busy(const Tree* tree, const uint64_t* busy_ns, int group) noexcept nogil:
    cdef int leaf
    for leaf in range(tree.low[group], tree.high[group]):
        if busy_ns[leaf]:
            return True
    return False


cdef int first_free(const Tree* tree, const uint64_t* busy_ns) noexcept nogil:
    """A free leaf; the first, if there is none."""
    cdef int leaf
    for leaf in range(tree.num_leaves):
        if not busy_ns[leaf]:
            return leaf
    return 0


cdef int due_trial(
    const Tree* tree, Estimates* estimates, const Lengths* lengths, const Plan* plan,
    const uint64_t* busy_ns, int group, int leaf, bint may_hold, uint64_t now,
) noexcept nogil:
    """The group beside `group`, of the plan's level, whose width has the oldest estimate: the one
    that it is merged into, or the part of it around `leaf`; -1: none is due, or none may be tried.
    `may_hold`: only the former, where it is busy."""
    cdef int candidates[2]
    cdef int at, level, kind, oldest = -1
    cdef double age, most = max(
        TRIAL_AGE_NS,
        TRIAL_AGE_RUNS * length_at(lengths, plan.level, plan.company[plan.level]),
    )
    if estimates.credit_ns.load(memory_order_relaxed) < 0:
        return -1
    candidates[0] = tree.parent[group]
    candidates[1] = group_around(tree, leaf, plan.level - 1) if plan.level > 0 else -1
    for at in range(2):
        if candidates[at] < 0 or is_busy(tree, busy_ns, candidates[at]) != may_hold:
            continue
        if tree.straddles[candidates[at]] and plan.company[plan.level] > 0:
            continue  # others could use it
        level = tree.level_of[candidates[at]]
        kind = CROWD if plan.company[level] >= 0.5 else ALONE
        age = <double>now - <double>max(
            estimates.learned_ns[kind][level].load(memory_order_relaxed),
            # It may have come to no end, or had other company than meant.
            estimates.tried_ns[level].load(memory_order_relaxed),
        )
        if age > most:
            oldest, most = candidates[at], age
    return oldest


cdef int32_t num_wide_trials(
    const Tree* tree, const Lengths* lengths, const Plan* plan, int level
) noexcept nogil:
    """By how many runs on end a width above the plan's is tried."""
    cdef double taken_ns = tree.width[level] * length_at(lengths, level, plan.company[level])
    cdef double least_ns = tree.width[plan.level] * length_at(
        lengths, plan.level, plan.company[plan.level]
    )
    if plan.company[plan.level] > 0 and (1 - WARMTH) * taken_ns < least_ns:
        return WARMING_RUNS + TELLING_RUNS
    return 1


cdef uint64_t trial_ns(const Lengths* lengths, const Plan* plan) noexcept nogil:
    """After which time a trial ends, though fewer requests than meant have come to take part."""
    cdef double run_ns = max(lengths.crowd[0], lengths.crowd[plan.level])
    return <uint64_t>(2 * (WARMING_RUNS + TELLING_RUNS) * run_ns)


cdef void begin_trial(
    Demand* demand, Estimates* estimates, int group, int level, int32_t num_requests,
    uint64_t until_ns, uint64_t now,
) noexcept nogil:
    demand.trial_number.store(
        estimates.number.load(memory_order_relaxed), memory_order_relaxed
    )
    demand.trial_group.store(group, memory_order_relaxed)
    demand.trial_level.store(level, memory_order_relaxed)
    demand.trial_until_ns.store(until_ns, memory_order_relaxed)
    demand.trial_left.store(num_requests, memory_order_relaxed)
    estimates.tried_ns[level].store(now, memory_order_relaxed)


cdef bint takes_part(
    const Tree* tree, Demand* demand, const uint64_t* busy_ns, int leaf, Trying trying,
    Decision* decision,
) noexcept nogil:
    """Whether the request is one of the trial that goes on, or is to wait for it."""
    cdef int region = demand.trial_group.load(memory_order_relaxed)
    cdef int level = demand.trial_level.load(memory_order_relaxed)
    cdef int other, group
    for other in range(tree.low[region], tree.high[region]):
        if busy_ns[other] or (leaf >= 0 and other != leaf):
            continue
        group = group_around(tree, other, level)
        if not is_busy(tree, busy_ns, group):
            decision.group = group
            if trying == MAY_TRY:
                demand.trial_left.fetch_sub(1, memory_order_relaxed)
                decision.is_trial = True
            return True
        if group == region and trying == MAY_HOLD:
            decision.group = region
            return True
    return False


cdef const uint64_t* kept_clear(
    const Tree* tree, Demand* demand, const Lengths* lengths, const uint64_t* busy_ns,
    uint64_t* taken_ns,
) noexcept nogil:
    """`busy_ns` for those that take no part in a trial: the group for which that waits is taken.
    `taken_ns`: room for it."""
    cdef int region = demand.trial_group.load(memory_order_relaxed)
    cdef int level = demand.trial_level.load(memory_order_relaxed)
    cdef int leaf
    cdef uint64_t busiest = 0
    if tree.level_of[region] != level:
        return busy_ns
    for leaf in range(tree.num_leaves):
        taken_ns[leaf] = busy_ns[leaf]
        if tree.low[region] <= leaf < tree.high[region]:
            busiest = max(busiest, busy_ns[leaf])
    for leaf in range(tree.low[region], tree.high[region]):
        taken_ns[leaf] = busiest + <uint64_t>lengths.crowd[level]
    return taken_ns


cdef Decision decide(
    const Tree* tree, Demand* demand, Estimates* estimates, const uint64_t* busy_ns, int leaf,
    double num_waiting, Trying trying, uint64_t now,
) noexcept nogil:
    """The group for the next request; see choose_group for `leaf`."""
    cdef Decision decision
    cdef Lengths lengths
    cdef Load load = read_load(demand)
    cdef Plan plan
    cdef uint64_t taken_ns[MAX_LEAVES]
    cdef bint is_ours
    cdef int level, group, other
    cdef int32_t num_requests = 1
    cdef uint64_t busiest = 0
    decision.group = leaf if leaf >= 0 else first_free(tree, busy_ns)
    decision.is_trial = False
    read_lengths(tree, estimates, &lengths)
    # Where nothing is known, a run on a leaf tells something.
    if estimates.stays_narrow.load(memory_order_relaxed) or not lengths.alone[0]:
        return decision
    is_ours = is_trying(demand, now) and (
        demand.trial_number.load(memory_order_relaxed)
        == estimates.number.load(memory_order_relaxed)
    )
    if is_ours:
        if trying != MAY_NOT_TRY and takes_part(tree, demand, busy_ns, leaf, trying, &decision):
            return decision
        busy_ns = kept_clear(tree, demand, &lengths, busy_ns, taken_ns)
    plan = make_plan(tree, &lengths, &load)
    decision.group = group = choose_group(tree, &lengths, &plan, busy_ns, leaf, num_waiting)
    if (
        trying == MAY_NOT_TRY
        or is_ours
        or is_busy(tree, busy_ns, group)
        or tree.level_of[group] != plan.level
        or not (leaf < 0 or tree.low[group] <= leaf < tree.high[group])
    ):
        return decision
    group = due_trial(
        tree, estimates, &lengths, &plan, busy_ns, group, leaf if leaf >= 0 else tree.low[group],
        trying == MAY_HOLD, now,
    )
    if group < 0:
        return decision
    level = tree.level_of[group]
    if trying == MAY_HOLD:
        # In a crowd a wider group is never free by itself. The first request whose width is not
        # chosen yet waits for one, for as long as the longest run there, and nobody twice.
        if now < demand.trial_until_ns.load(memory_order_relaxed) + <uint64_t>TRIAL_AGE_NS:
            return decision
        for other in range(tree.low[group], tree.high[group]):
            busiest = max(busiest, busy_ns[other])
        begin_trial(
            demand, estimates, group, level, num_wide_trials(tree, &lengths, &plan, level),
            now + 2 * busiest + trial_ns(&lengths, &plan), now,
        )
        decision.group = group
        return decision
    if level > plan.level:
        decision.group = group
        num_requests = num_wide_trials(tree, &lengths, &plan, level)
    # In company, a narrower width is tried by as many requests as keep the same leaves busy,
    # twice: those of the second turn have full company from start to end.
    elif level < plan.level and plan.company[level] > 0:
        num_requests = min(
            <int32_t>load.population, 2 * tree.width[plan.level] // tree.width[level]
        )
    begin_trial(
        demand, estimates, decision.group, level, num_requests - 1,
        now + trial_ns(&lengths, &plan), now,
    )
    decision.group = group
    decision.is_trial = True
    return decision


@cython.final
cdef class Learner:
    """A policy for one model on machines that are not at hand: for the simulator, and for tests.

    Times are in ns, of whatever clock the caller has.

    >>> from deepsched.runtime.policy import PolicyTree
    >>> tree = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    >>> learner = Learner(tree, [5_100_000, 2_900_000])
    >>> learner.arrive(1, 0)
    >>> learner.decide([0, 0], 0, 1, 0, may_try=False)
    (2, False)
    """

    cdef PolicyTree _tree
    cdef Demand _demand
    cdef Estimates _estimates

    def __cinit__(self, PolicyTree tree not None, run_ns, long long born_ns=0):
        cdef int level
        self._tree = tree
        self._demand.born_ns = born_ns
        self._demand.rolled_ns.store(born_ns, memory_order_relaxed)
        for level, ns in enumerate(run_ns):
            believe(&self._estimates, level, ns, born_ns)

    def arrive(self, int num_in_system, uint64_t now) -> None:
        """A request arrives, and is one of so many."""
        record_demand(
            &self._demand, num_in_system,
            <uint64_t>self._estimates.run_ns[CROWD][0].load(memory_order_relaxed), now,
        )

    def decide(
        self, busy_ns, int leaf, double num_waiting, uint64_t now, bint may_try=True,
        bint may_hold=False,
    ) -> tuple[int, bool]:
        """The group for the next request, which may be busy, and whether that is a trial.

        `may_hold`: asks only whether it is to wait; where it is not, the group is free.
        """
        cdef uint64_t busy[64]
        cdef Trying trying = MAY_HOLD if may_hold else MAY_TRY if may_try else MAY_NOT_TRY
        for index in range(self._tree.tree.num_leaves):
            busy[index] = busy_ns[index]
        decision = decide(
            &self._tree.tree, &self._demand, &self._estimates, busy, leaf, num_waiting, trying, now
        )
        return decision.group, bool(decision.is_trial)

    def learn(
        self, int group, double company, uint64_t length_ns, bint is_trial, uint64_t now
    ) -> None:
        """A run has ended, beside which a share `company` of the other leaves was busy."""
        learn(
            &self._tree.tree, &self._demand, &self._estimates, group, company, length_ns, is_trial,
            now,
        )

    def doubt(self) -> None:
        """The machine has changed: what is believed of wide groups has lost its weight."""
        doubt(&self._tree.tree, &self._estimates)

    @property
    def lengths(self) -> list[tuple[float, float]]:
        """By level: what a run is believed to take alone, and in a crowd."""
        return [
            (
                self._estimates.run_ns[ALONE][level].load(memory_order_relaxed),
                self._estimates.run_ns[CROWD][level].load(memory_order_relaxed),
            )
            for level in range(self._tree.tree.num_levels)
        ]
