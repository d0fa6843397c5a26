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
    cdef double latency, least = -1, shortest = 0, count, rate, used
    cdef double longer, saved, low = 0, high = -1
    cdef int level
    plan.level = 0
    plan.usable = 1
    plan.price = 0
    plan.spare = MIN_SPARE
    for level in range(tree.num_levels):
        plan.company[level] = 0
        if not lengths.alone[level]:
            continue
        count = <double>tree.num_leaves / tree.width[level]
        if count > 1:
            plan.company[level] = min(
                1.0,
                max(0.0, load.population - 1) / (count - 1),
                load.offered * lengths.crowd[level] / lengths.crowd[0] / count,
            )
        run_ns[level] = length_at(lengths, level, plan.company[level])
        if level and run_ns[level] > (1 - MIN_GAIN) * shortest:
            continue
        shortest = run_ns[level]
        plan.usable |= <uint64_t>1 << level
        rate = count / run_ns[level]
        used = load.offered / lengths.crowd[0] / rate
        plan.spare = max(plan.spare, 1 - used)
        latency = max(run_ns[level], load.population / rate)
        if used < 1:
            latency = min(
                latency,
                run_ns[level]
                + run_ns[level] / (2 * count) * pow(used, sqrt(2 * (count + 1)) - 1) / (1 - used),
            )
        if least < 0 or latency < least:
            plan.level, least = level, latency
    # The price at which a request that finds an empty machine takes that level as well: between
    # what makes the narrower ones better, and the wider ones.
    for level in range(tree.num_levels):
        if not plan.usable >> level & 1 or level == plan.level:
            continue
        longer = run_ns[level] - run_ns[plan.level]
        saved = tree.width[plan.level] * run_ns[plan.level] - tree.width[level] * run_ns[level]
        if level < plan.level and longer > 0 and saved > 0:
            high = longer / saved if high < 0 else min(high, longer / saved)
        elif level > plan.level and longer < 0 and saved < 0:
            low = max(low, longer / saved)
    plan.is_frugal = high < 0
    if plan.is_frugal:
        plan.price = 2 * low
    elif low == 0:
        plan.price = high / 4
    else:
        plan.price = sqrt(low * high) if high > low else low
    return plan


cdef int choose_group(
    const Tree* tree, const Lengths* lengths, const Plan* plan, const uint64_t* busy_ns, int leaf,
    double num_waiting,
) noexcept nogil:
    """The group for the first of those that wait. If it is busy, waiting for it is better than
    any other.

    What counts is when the request ends, and the leaf time that it takes, idle time of leaves that
    are kept free included, at the price of the plan and of those that wait behind it. Of equally
    good groups: the one around `leaf`, else the one with the least room around it, so that narrow
    runs gather and leave wide groups whole.

    Args:
        busy_ns: by leaf, for how long it will be taken; 0: free.
        leaf: that the caller owns; -1: none.
        num_waiting: at least 1.
    """
    cdef double price = plan.price + (num_waiting - 1) / tree.num_leaves / plan.spare
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
