from deepsched.runtime.elastic cimport Elastic
from deepsched.runtime.request cimport RequestState
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef class ExpectedLoad:
    cdef Elastic elastic  # None: every request takes one stream
    cdef bint is_elastic
    cdef char _pad0[64]
    cdef atomic[uint64_t] ns  # how long the queued requests are expected to run
    cdef atomic[uint32_t] num_long  # of them, those of models whose runs are not short
    cdef atomic[uint32_t] num_unknown  # and those whose inputs are not known to be short

    cdef void add(self, RequestState* request) noexcept nogil
    cdef void subtract(self, RequestState* request) noexcept nogil
