"""The elastic policy: which width of core group a request takes, a pure function of a small state.

README.md, "How wide". The simulator (bench/simulate.py) decides by the same code.
"""

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memset
from libcpp.algorithm cimport pop_heap, push_heap


cdef int roomiest_leaf(const Tree* tree, uint64_t free) noexcept nogil:
    """The free leaf with the widest free group around it; -1: none is free."""
    cdef int group
    for group in range(tree.num_groups - 1, -1, -1):  # the widest first
        if free & tree.mask[group] == tree.mask[group]:
            return tree.low[group]
    return -1


cdef int choose_group(
    const Tree* tree, const uint64_t* run_ns, const uint64_t* busy_ns, int leaf,
    double num_waiting, double num_seen,
) noexcept nogil:
    """The group around the free `leaf` whose width minimises total latency.

    Were those that wait, and those that they announce, all to take groups of that width, one after
    another, each the first to become free. If the group that it returns is busy, the request had
    better wait for it.

    Args:
        run_ns: by group, how long a run takes there; 0: too wide to be of use.
        busy_ns: by leaf, for how long it will be taken; 0: free.
        num_waiting: at least 1.
        num_seen: how many others requests found on their arrival lately, on average.
    """
    # A queue announces more than itself: README, "How wide". The last may be a part of a request:
    # what is expected counts by its likelihood.
    cdef double num_requests = num_waiting * num_waiting + num_seen
    cdef int group = leaf, best = leaf
    cdef double total, least = 0
    cdef bint is_backlog = num_requests > 4 * tree.num_leaves
    while group >= 0 and run_ns[group]:
        if is_backlog:
            # Throughput counts. The narrowest groups have the highest, but for models that do not
            # fit the caches twice; 5 % is below what the measurement resolves.
            total = <double>run_ns[group] * (tree.high[group] - tree.low[group])
            if group != leaf:
                total *= 1.05
        else:
            total = _total_latency(
                tree, tree.level_of[group], <double>run_ns[group], busy_ns, num_requests
            )
        # Ties go to the wider group: its run is over sooner.
        if group == leaf or total <= least:
            best, least = group, total
        group = tree.parent[group]
    return best


cdef double _total_latency(
    const Tree* tree, int level, double run_ns, const uint64_t* busy_ns, double num_requests
) noexcept nogil:
    # A heap of the times at which each group of the level will be free, negated: the library's
    # heaps keep the largest on top.
    cdef double heap[MAX_LEAVES]
    cdef int index, leaf, group, num_heap = 0
    cdef double free_at, end, total = 0
    cdef uint64_t latest
    for index in range(tree.level_start[level], tree.level_start[level + 1]):
        group = tree.level_groups[index]
        latest = 0
        for leaf in range(tree.low[group], tree.high[group]):
            latest = max(latest, busy_ns[leaf])
        heap[num_heap] = -<double>latest
        num_heap += 1
        push_heap(&heap[0], &heap[num_heap])
    while num_requests > 0:
        pop_heap(&heap[0], &heap[num_heap])
        end = run_ns - heap[num_heap - 1]
        total += end * min(1.0, num_requests)
        heap[num_heap - 1] = -end
        push_heap(&heap[0], &heap[num_heap])
        num_requests -= 1
    return total


@cython.final
cdef class PolicyTree:
    """The tree of core groups as the policy uses it.

    Args:
        leaves: of each group, its first leaf and the one after its last: the leaves themselves
            first, wider ones later, the root last (deepsched.scheduling.group_tree.tree_of).
        parents: of each group, the group that it is merged into; -1 for the root.

    >>> tree = PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1])
    >>> run_ns = [5_100_000, 5_100_000, 2_900_000]
    >>> tree.choose(run_ns, [0, 0], 0, 1), tree.choose(run_ns, [0, 0], 0, 4)
    (2, 0)
    """

    def __cinit__(self, leaves, parents):
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
        widths = sorted({high - low for low, high in leaves})
        self.tree.num_levels = len(widths)
        filled = 0
        for level, width in enumerate(widths):
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

    def roomiest_leaf(self, busy_ns) -> int:
        """See roomiest_leaf above; `busy_ns` by leaf, 0 for free."""
        free = sum(1 << leaf for leaf, busy in enumerate(busy_ns) if not busy)
        return roomiest_leaf(&self.tree, free)

    def choose(self, run_ns, busy_ns, int leaf, int num_waiting, double num_seen=0.0) -> int:
        """See choose_group above."""
        cdef uint64_t runs[MAX_GROUPS]
        cdef uint64_t busy[MAX_LEAVES]
        for group in range(self.tree.num_groups):
            runs[group] = run_ns[group]
        for index in range(self.tree.num_leaves):
            busy[index] = busy_ns[index]
        return choose_group(&self.tree, runs, busy, leaf, num_waiting, num_seen)
