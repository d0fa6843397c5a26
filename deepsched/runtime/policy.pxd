from libc.stdint cimport uint64_t

cdef enum:
    MOST_LEAVES = 64
    MOST_GROUPS = 127
    MOST_LEVELS = 64

cdef struct Tree:
    # Core groups: the leaves first, wider ones later, the root last.
    int num_leaves
    int num_groups
    int low[MOST_GROUPS]
    int high[MOST_GROUPS]  # after the last
    int parent[MOST_GROUPS]  # -1: the root
    uint64_t mask[MOST_GROUPS]  # of its leaves
    # Level k: the groups that a machine without anything wider than width k would be cut into.
    int num_levels
    int level_of[MOST_GROUPS]
    int level_start[MOST_LEVELS + 1]
    int level_groups[MOST_LEVELS * MOST_LEAVES]

cdef class GroupTree:
    cdef Tree tree

cdef int roomiest_leaf(const Tree* tree, uint64_t free) noexcept nogil
cdef int choose_group(
    const Tree* tree, const uint64_t* run_ns, const uint64_t* busy_ns, int leaf,
    double num_waiting, double num_seen,
) noexcept nogil
