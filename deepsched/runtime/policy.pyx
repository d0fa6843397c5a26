"""The elastic policy: which width of core group a request takes. Pure functions of a small state.

README.md, "How wide". The simulator (bench/simulate.py) decides by the same code.
"""

cimport cython
from libc.math cimport pow, sqrt
from libc.stdint cimport uint64_t
from libc.string cimport memset

# A wider group that shortens a run by less than this is not used: its cores serve others better,
# and measurements hardly resolve less.
cdef double MIN_GAIN = 0.05

# Below this, the price of a leaf's time would follow the noise of the estimated load.
cdef double MIN_SPARE = 0.05

# At full load, how many are as good as waiting where nobody does yet.
cdef double SOON = 2


cdef int room_around(const Tree* tree, uint64_t busy, int group) noexcept nogil:
    """Leaves in the widest free group around `group`, which is free. `busy`: a bit for each leaf."""
    while tree.parent[group] >= 0 and not tree.mask[tree.parent[group]] & busy:
        group = tree.parent[group]
    return tree.high[group] - tree.low[group]


cdef double length_at(const Lengths* lengths, int level, double company) noexcept nogil:
    """How long a run takes while a share `company` of the other leaves is busy, ns."""
    return lengths.alone[level] + company * (lengths.crowd[level] - lengths.alone[level])


cdef Plan make_plan(const Tree* tree, const Lengths* lengths, const Load* load) noexcept nogil:
    """What serves `load` best, and what a leaf's time is worth meanwhile. README, "How wide".

    A level's mean latency is estimated twice, and the lower one holds. *Open*: requests arrive at
    random, whatever becomes of them; M/D/c's wait by Sakasegawa's approximation. *Closed*: there
    are no more than `population`, each of which arrives when one ends.
    """
    cdef Plan plan
    cdef double run_ns[MAX_LEVELS]
    cdef double latency, open_latency, least = -1, shortest = 0, count, rate, used
    cdef double demanded = load.offered / lengths.crowd[0]
    cdef bint is_open
    cdef int level
    plan.level = 0
    plan.usable = 1
    plan.spare = MIN_SPARE
    plan.is_open = False
    for level in range(tree.num_levels):
        plan.company[level] = 0
        if not lengths.alone[level]:
            continue
        count = <double>tree.num_leaves / tree.width[level]
        if count > 1:
            plan.company[level] = min(
                1.0,
                max(0.0, load.population - 1) / (count - 1),
                demanded * lengths.crowd[level] / count,
            )
        run_ns[level] = length_at(lengths, level, plan.company[level])
        if level and run_ns[level] > (1 - MIN_GAIN) * shortest:
            continue
        shortest = run_ns[level]
        plan.usable |= <uint64_t>1 << level
        # Where it matters what is left, all leaves are busy.
        plan.spare = max(plan.spare, 1 - demanded * lengths.crowd[level] / count)
        rate = count / run_ns[level]
        used = demanded / rate
        latency = max(run_ns[level], load.population / rate)
        is_open = False
        if used < 1:
            open_latency = run_ns[level] + run_ns[level] / (2 * count) * pow(
                used, sqrt(2 * (count + 1)) - 1
            ) / (1 - used)
            is_open = open_latency < latency
            latency = min(latency, open_latency)
        if least < 0 or latency < least:
            plan.level, plan.is_open, least = level, is_open, latency
    plan.soon = min(SOON * (1 - plan.spare), max(0.0, load.population - 1))
    plan.is_frugal = True
    for level in range(plan.level):
        if plan.usable >> level & 1 and (
            tree.width[level] * run_ns[level] < tree.width[plan.level] * run_ns[plan.level]
        ):
            plan.is_frugal = False
    return plan


cdef double price_of_time(const Tree* tree, const Plan* plan, double num_waiting) noexcept nogil:
    """What a leaf's time is worth while so many wait: ns of latency for each ns.

    All that wait are held up by a share of it, and so are those that come until nobody waits any
    more: as many again for each of the shares that are spare. Where nobody else waits, what counts
    is who will, before the run is over.
    """
    return (num_waiting - 1 + plan.soon) / tree.num_leaves / plan.spare


cdef int group_for_one(
    const Tree* tree, const Lengths* lengths, const Plan* plan, const uint64_t* busy_ns, int leaf,
    double num_waiting, double price,
) noexcept nogil:
    """As choose_group, as if nobody else had to be served meanwhile."""
    cdef double cost, least = -1, wait_cost, longest, idle, company, run_ns, gathering
    cdef int level, index, group, other, room, least_room, found, best = max(leaf, 0), num_busy = 0
    cdef uint64_t busy = 0
    for other in range(tree.num_leaves):
        if busy_ns[other]:
            busy |= <uint64_t>1 << other
            num_busy += 1
    for level in range(tree.num_levels):
        if not plan.usable >> level & 1:
            continue
        wait_cost = least_room = 0
        found = -1
        # Where the plan's width takes less leaf time than any narrower, leaves that idle until a
        # group is whole idle once for all that run there then: for what waits, and for what comes
        # until nothing does.
        gathering = plan.spare / num_waiting if plan.is_frugal and level == plan.level else 1
        for index in range(tree.level_start[level], tree.level_start[level + 1]):
            group = tree.level_groups[index]
            if tree.level_of[group] != level:
                continue  # an odd one out, narrower
            # DeepSparse's meaning of a stream: it stays within a node while others could use it.
            if level > 0 and tree.straddles[group] and num_waiting > 1:
                continue
            cost = room = 0
            if busy & tree.mask[group]:
                longest = idle = 0
                for other in range(tree.low[group], tree.high[group]):
                    longest = max(longest, <double>busy_ns[other])
                    idle += busy_ns[other] == 0
                cost = longest + price * idle * longest * gathering
            elif not tree.low[group] <= leaf < tree.high[group]:
                room = room_around(tree, busy, group)
            if found >= 0 and cost > wait_cost:
                continue
            if found < 0 or cost < wait_cost or room < least_room:
                found, wait_cost, least_room = group, cost, room
        if found < 0:
            continue
        company = plan.company[level]
        if tree.width[level] < tree.num_leaves:
            company = max(
                company, min(1.0, <double>num_busy / (tree.num_leaves - tree.width[level]))
            )
        run_ns = length_at(lengths, level, company)
        cost = wait_cost + run_ns + price * run_ns * tree.width[level]
        if least < 0 or cost < least:
            best, least = found, cost
    return best


cdef int choose_group(
    const Tree* tree, const Lengths* lengths, const Plan* plan, const uint64_t* busy_ns, int leaf,
    double num_waiting,
) noexcept nogil:
    """The group for the next of those that wait. If it is busy, waiting is better for each of them
    than any that is free.

    What counts is when a request ends, and the leaf time that it takes, idle time of leaves that
    are kept free included, at the price of those that wait behind it. Of equally good groups: the
    one around `leaf`, else the one with the least room around it, so that narrow runs gather and
    leave wide groups whole. Where the first had better wait for a busy group, the second may go on
    with what is free after that; as they are alike, it is the first that does.

    Args:
        busy_ns: by leaf, for how long it will be taken; 0: free.
        leaf: that the caller owns; -1: none.
        num_waiting: at least 1.
    """
    cdef double price = price_of_time(tree, plan, num_waiting)
    cdef int first = group_for_one(tree, lengths, plan, busy_ns, leaf, num_waiting, price)
    cdef int group = first, other, level
    cdef uint64_t taken_ns[MAX_LEAVES]
    cdef uint64_t longest
    cdef bint any_free
    for other in range(tree.num_leaves):
        taken_ns[other] = busy_ns[other]
    while True:
        longest = 0
        for other in range(tree.low[group], tree.high[group]):
            longest = max(longest, taken_ns[other])
        if longest == 0:
            return group
        num_waiting -= 1
        if num_waiting < 1:
            return first
        level = tree.level_of[group]
        for other in range(tree.low[group], tree.high[group]):
            taken_ns[other] = longest + <uint64_t>length_at(lengths, level, plan.company[level])
        any_free = False
        for other in range(tree.num_leaves):
            any_free = any_free or taken_ns[other] == 0
        if not any_free:
            return first
        group = group_for_one(tree, lengths, plan, taken_ns, leaf, num_waiting, price)


@cython.final
cdef class PolicyTree:
    """The tree of core groups as the policy uses it.

    Args:
        leaves: of each group, its first leaf and the one after its last: the leaves themselves
            first, wider ones later, the root last (deepsched.scheduling.group_tree.tree_of).
        parents: of each group, the group that it is merged into; -1 for the root.
        straddling: the groups that span NUMA nodes.

    >>> tree = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    >>> tree.num_levels, tree.level_of(2)
    (2, 1)
    """

    def __cinit__(self, leaves, parents, straddling=()):
        cdef int group, level
        memset(&self.tree, 0, sizeof(Tree))
        num_leaves = sum(high - low == 1 for low, high in leaves)
        if not 1 <= num_leaves <= MAX_LEAVES or len(leaves) > MAX_GROUPS:
            raise ValueError(f"expected at most {MAX_LEAVES} leaves, got {num_leaves}")
        self.tree.num_leaves = num_leaves
        self.tree.num_groups = len(leaves)
        for group, (low, high) in enumerate(leaves):
            self.tree.low[group] = low
            self.tree.high[group] = high
            self.tree.parent[group] = parents[group]
            self.tree.mask[group] = sum(1 << leaf for leaf in range(low, high))
            self.tree.straddles[group] = group in straddling
        widths = sorted({high - low for low, high in leaves})
        self.tree.num_levels = len(widths)
        filled = 0
        for level, width in enumerate(widths):
            self.tree.width[level] = width
            self.tree.level_start[level] = filled
            for group, (low, high) in enumerate(leaves):
                if high - low == width:
                    self.tree.level_of[group] = level
                above = parents[group]
                if high - low <= width and (
                    above < 0 or leaves[above][1] - leaves[above][0] > width
                ):
                    self.tree.level_groups[filled] = group
                    filled += 1
        self.tree.level_start[len(widths)] = filled

    @property
    def num_levels(self) -> int:
        """How many widths there are."""
        return self.tree.num_levels

    def level_of(self, int group) -> int:
        """The level of a group, from 0 for the narrowest."""
        return self.tree.level_of[group]
