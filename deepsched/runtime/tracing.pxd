from libc.stdint cimport int32_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_relaxed

cdef struct TraceEntry:
    uint64_t submitted_ns
    uint64_t started_ns  # 0: it never ran
    uint64_t ended_ns
    uint32_t model
    int32_t group  # -1: it never ran
    uint32_t stage  # how it ended
    bint by_worker

cdef struct TraceState:
    atomic[TraceEntry*] entries  # NULL: nothing is traced
    size_t capacity  # of `entries`; written before them
    char _pad0[48]
    atomic[size_t] num_taken  # places in `entries`, and those there was no room for
    atomic[uint32_t] num_writers  # threads that may hold on to `entries`

cdef class Tracer:
    cdef TraceState state
    cdef uint32_t generation

cdef inline bint is_on(TraceState* trace) noexcept nogil:
    # relaxed: a request that ends just as the trace begins may be in it or not.
    return trace.entries.load(memory_order_relaxed) != NULL

cdef void note(TraceState* trace, TraceEntry entry) noexcept nogil
