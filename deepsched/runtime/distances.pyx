"""How far apart neighbouring streams are: a cheap sign that the machine has changed.

README.md, "Ping-pong".
"""

cimport cython
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.pingpong cimport ping, pong
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release

cdef uint64_t NEVER = <uint64_t>-1

cdef uint64_t PERIOD_NS = 1_000_000_000

# After this another look decides whether a new distance is one, or a clock that still speeds up;
# and one is made for which the neighbour was not free.
cdef uint64_t AGAIN_NS = 20_000_000

# 0.03 to 0.13 ms, and eight batches, of which the quietest counts.
cdef int NUM_ROUNDS = 256

# Longer than the other worker takes to wake.
cdef uint64_t PATIENCE_NS = 1_000_000

# As machine/latency.py parts levels.
cdef double GAP = 1.6


cdef inline bint differ(uint64_t a, uint64_t b) noexcept nogil:
    return max(a, b) >= GAP * min(a, b)


@cython.final
cdef class Distances:
    """How far apart the streams of an elastic context are, and whether that has changed.

    Args:
        is_pinned: whether each stream has a core of its own; if not, there is nothing to see.

    >>> from deepsched.runtime.policy import PolicyTree
    >>> distances = Distances(PolicyTree([(0, 1), (1, 2), (0, 2)], [2, 2, -1]), True)
    >>> [distances.note(0, trip_ns) for trip_ns in (112, 118, 471, 470, 474)]
    [False, False, False, True, False]
    >>> distances.changes
    1
    """

    def __cinit__(self, PolicyTree tree not None, bint is_pinned):
        cdef int leaf, group
        self.table = PingPongTable()
        # relaxed, here and below where nothing is said: hints, or not shared yet.
        self.due_ns.store(now_ns() + PERIOD_NS, memory_order_relaxed)
        self.pinger.store(-1, memory_order_relaxed)
        self.ponger.store(-1, memory_order_relaxed)
        for leaf in range(MAX_LEAVES):
            self.neighbours[leaf] = -1
        for leaf in range(tree.tree.num_leaves):
            group = tree.tree.parent[leaf]
            if is_pinned and group >= 0 and tree.tree.high[group] - tree.tree.low[group] == 2:
                self.neighbours[leaf] = tree.tree.low[group] + tree.tree.high[group] - 1 - leaf

    @property
    def changes(self) -> int:
        """How often a pair of streams was found nearer together, or farther apart, than before."""
        return self.num_changes.load(memory_order_relaxed)

    @property
    def trips(self) -> list[int]:
        """The latest round trips of all pairs that were looked at, in ns."""
        cdef int leaf
        found = [self.trips_ns[leaf].load(memory_order_relaxed) for leaf in range(MAX_LEAVES)]
        return [trip_ns for trip_ns in found if trip_ns]

    cdef bint is_due(self, uint64_t now) noexcept nogil:
        return now >= self.due_ns.load(memory_order_relaxed)

    cdef bint begin(self, int leaf) noexcept nogil:
        """Whether `leaf` and its neighbour may play now. The caller then claims both leaves, and
        appoints their workers; or gives up."""
        cdef uint64_t due_ns = self.due_ns.load(memory_order_relaxed)
        # acquire: the last game's figures. Of two that come at once, one begins.
        if due_ns == NEVER or self.neighbours[leaf] < 0 or not self.due_ns.compare_exchange_strong(
            due_ns, NEVER, memory_order_acquire
        ):
            return False
        return True

    cdef void appoint(self, int leaf) noexcept nogil:
        """The workers of `leaf` and its neighbour play when they are next given these, which the
        caller owns."""
        # relaxed: published with the leaves.
        self.pinger.store(leaf, memory_order_relaxed)
        self.ponger.store(self.neighbours[leaf], memory_order_relaxed)

    cdef void give_up(self, uint64_t now) noexcept nogil:
        """A leaf was not free."""
        self.due_ns.store(now + AGAIN_NS, memory_order_release)

    cdef void play(self, int leaf) noexcept nogil:
        """A worker's turn begins with its part in a game, if it has one."""
        cdef uint64_t trip_ns, period_ns = PERIOD_NS
        if self.ponger.load(memory_order_relaxed) == leaf:
            self.ponger.store(-1, memory_order_relaxed)
            pong(self.table.lines, PATIENCE_NS)
        elif self.pinger.load(memory_order_relaxed) == leaf:
            self.pinger.store(-1, memory_order_relaxed)
            trip_ns = ping(self.table.lines, NUM_ROUNDS, PATIENCE_NS)
            if trip_ns:
                self.learn(leaf, trip_ns)
                if self.doubtful_ns[min(leaf, self.neighbours[leaf])]:
                    period_ns = AGAIN_NS
            self.due_ns.store(now_ns() + period_ns, memory_order_release)

    cdef bint learn(self, int leaf, uint64_t trip_ns) noexcept nogil:
        """What a game of `leaf` and its neighbour has shown. True: they are not where they were,
        now for the second time on end."""
        cdef int pair = min(leaf, self.neighbours[leaf])
        cdef uint64_t before_ns = self.trips_ns[pair].load(memory_order_relaxed)
        cdef uint64_t doubtful_ns = self.doubtful_ns[pair]
        cdef bint is_other = before_ns != 0 and differ(trip_ns, before_ns)
        self.doubtful_ns[pair] = 0
        if is_other and (not doubtful_ns or differ(trip_ns, doubtful_ns)):
            self.doubtful_ns[pair] = trip_ns
            return False
        self.trips_ns[pair].store(trip_ns, memory_order_relaxed)
        if is_other:
            self.num_changes.fetch_add(1, memory_order_relaxed)
        return is_other

    def note(self, int leaf, uint64_t trip_ns) -> bool:
        """As if a game of `leaf` and its neighbour had shown that; whether it is a change."""
        if not 0 <= leaf < MAX_LEAVES or self.neighbours[leaf] < 0:
            raise ValueError(f"stream {leaf} has no neighbour to play with")
        return self.learn(leaf, trip_ns)
