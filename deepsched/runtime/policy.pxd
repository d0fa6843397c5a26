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
    # Level k: the groups that a machine without anything wider than width k would be cut into.
    int num_levels
    int level_of[MAX_GROUPS]
    int level_start[MAX_LEVELS + 1]
    int level_groups[MAX_LEVELS * MAX_LEAVES]

cdef class PolicyTree:
    cdef Tree tree

cdef int roomiest_leaf(const Tree* tree, uint64_t free) noexcept nogil
cdef int choose_group(
    const Tree* tree, const uint64_t* run_ns, const uint64_t* busy_ns, int leaf,
    double num_waiting, double num_seen,
) noexcept nogil
