from deepsched.runtime.distances cimport Distances
from deepsched.runtime.estimates cimport Decision, Demand, Estimates, Trying
from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.policy cimport MAX_LEAVES, Tree
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    NUM_COUNTERS = 64

cdef class Elastic:
    cdef Tree tree
    cdef CoreGroups groups
    cdef atomic[uint64_t] until_ns[MAX_LEAVES]  # when what runs there is expected to end
    cdef char _pad0[64]
    cdef atomic[int32_t] num_running
    cdef Demand demand
    cdef readonly Distances distances
    cdef Estimates latest  # of the model that a request arrived for last: a copy
    cdef atomic[uint32_t] num_queued[NUM_COUNTERS]  # by model, some of which share one
    cdef atomic[double] request_cost  # of the latest model's requests, in runs of one

    cdef void record_arrival(
        self, Estimates* estimates, size_t num_waiting, double request_cost
    ) noexcept nogil
    cdef double in_runs(self, size_t num_requests) noexcept nogil
    cdef Decision decide(
        self, Estimates* estimates, int leaf, uint64_t own, size_t num_waiting, Trying trying
    ) noexcept nogil
    cdef uint64_t remaining_ns(self, int leaf, uint64_t now) noexcept nogil
    cdef uint64_t busy_ns(self, int group, uint64_t own) noexcept nogil
    cdef bint is_mixed(self, size_t num_waiting) noexcept nogil
    cdef int claim_leaf(self, size_t num_waiting) noexcept nogil
    cdef Decision claim(
        self, Estimates* estimates, int preferred, Trying trying
    ) noexcept nogil
    cdef Decision widen(
        self, int leaf, uint64_t own, Estimates* estimates, size_t num_waiting, Trying trying
    ) noexcept nogil
    cdef double record_start(self, int group, Estimates* estimates, double cost) noexcept nogil
    cdef double company(self, int group) noexcept nogil
    cdef void record_end(self, int group, uint64_t kept) noexcept nogil
