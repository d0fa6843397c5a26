from deepsched.runtime.elastic cimport Elastic
from deepsched.runtime.request cimport RequestState
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef class ExpectedLoad:
    cdef Elastic elastic  # None: every request takes one stream
    cdef bint is_elastic
    cdef char _pad0[64]
    cdef atomic[uint64_t] ns  # how long the queued requests are expected to run
    cdef atomic[uint32_t] num_long  # of them, those that are not short

    cdef void add(self, RequestState* request) noexcept nogil
    cdef void subtract(self, RequestState* request) noexcept nogil
