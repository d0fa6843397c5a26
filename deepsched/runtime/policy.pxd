from libc.stdint cimport uint64_t

cdef enum:
    MAX_LEAVES = 64
    MAX_GROUPS = 127
    MAX_LEVELS = 64

cdef struct Tree:
    # Core groups: the leaves first, wider ones later, the root last.
    int num_leaves
    int num_groups
    int low[MAX_GROUPS]
    int high[MAX_GROUPS]  # after the last
    int parent[MAX_GROUPS]  # -1: the root
    uint64_t mask[MAX_GROUPS]  # of its leaves
    bint straddles[MAX_GROUPS]  # it spans NUMA nodes
    # Level k: the groups that a machine without anything wider than width k would be cut into.
    int num_levels
    int width[MAX_LEVELS]  # in leaves
    int level_of[MAX_GROUPS]
    int level_start[MAX_LEVELS + 1]
    int level_groups[MAX_LEVELS * MAX_LEAVES]

cdef struct Lengths:
    # How long a model's runs take, by level, ns; 0: unknown.
    double alone[MAX_LEVELS]  # while the other leaves idle
    double crowd[MAX_LEVELS]  # while all of them run

cdef struct Load:
    double offered  # leaves that would be busy if each request took one, in company
    double population  # the most requests in the system at once, lately

cdef struct Plan:
    int level  # whose groups would serve this load best if all requests took them
    uint64_t usable  # a bit for each level that is worth its width
    double company[MAX_LEVELS]  # share of the other leaves that will be busy beside such a run
    bint is_frugal  # `level` takes no more leaf time than any narrower
    bint is_open  # requests arrive whatever becomes of the others
    double spare  # share of its capacity that the machine has left, at least MIN_SPARE
    double soon  # how many are likely to wait soon, where nobody does

cdef class PolicyTree:
    cdef Tree tree

cdef Plan make_plan(const Tree* tree, const Lengths* lengths, const Load* load) noexcept nogil
cdef double price_of_time(const Tree* tree, const Plan* plan, double num_waiting) noexcept nogil
cdef double length_at(const Lengths* lengths, int level, double company) noexcept nogil
cdef int choose_group(
    const Tree* tree, const Lengths* lengths, const Plan* plan, const uint64_t* busy_ns, int leaf,
    double num_waiting,
) noexcept nogil
