from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.policy cimport MAX_GROUPS, MAX_LEAVES, Tree
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef struct RunLength:
    # How long a model's runs take on one core group.
    atomic[uint64_t] expected_ns  # smoothed; 0: unknown, or too wide to be of use
    uint64_t alone_ns  # measured when nothing else ran

cdef class Elastic:
    cdef Tree tree
    cdef CoreGroups groups
    cdef atomic[uint64_t] until_ns[MAX_LEAVES]  # when what runs there is expected to end
    cdef char _pad0[64]
    cdef atomic[int32_t] num_running
    cdef atomic[uint32_t] seen  # smoothed number of requests that an arriving one finds; in 1/1024
    # Of the model that a request arrived for last.
    cdef atomic[uint64_t] latest_run_ns[MAX_GROUPS]

    cdef void record_arrival(self, RunLength* lengths, size_t num_waiting) noexcept nogil
    cdef int choose(self, int leaf, RunLength* lengths, size_t num_waiting) noexcept nogil
    cdef int choose_by(self, int leaf, uint64_t* run_ns, size_t num_waiting) noexcept nogil
    cdef uint64_t remaining_ns(self, int leaf, uint64_t now) noexcept nogil
    cdef uint64_t busy_ns(self, int group, int leaf) noexcept nogil
    cdef int preferred_group(self, int leaf, size_t num_waiting) noexcept nogil
    cdef bint has_room_for(self, int group) noexcept nogil
    cdef int claim_leaf(self) noexcept nogil
    cdef int widen(self, int leaf, RunLength* lengths, size_t num_waiting) noexcept nogil
    cdef void record_start(self, int group, RunLength* lengths) noexcept nogil
    cdef void learn(self, int group, RunLength* lengths, uint64_t length_ns) noexcept nogil
    cdef void record_end(self, int group, int leaf) noexcept nogil
