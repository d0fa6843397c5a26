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
    uint32_t num_together  # requests in its run; 0: it never ran

cdef struct TraceBuffer:
    # Of one trace, in one piece: whoever has the pointer has a capacity that fits.
    size_t capacity
    char _pad0[56]
    atomic[size_t] num_taken  # places among the entries, and those there was no room for
    char _pad1[56]
    # `capacity` entries lie behind it.

cdef struct TraceState:
    atomic[TraceBuffer*] buffer  # NULL: nothing is traced
    char _pad0[56]
    atomic[uint32_t] num_writers  # threads that may hold on to a buffer

cdef class Tracer:
    cdef TraceState state
    cdef object owner  # of the trace that is under way; None: there is none
    cdef uint32_t generation

cdef inline bint is_on(TraceState* trace) noexcept nogil:
    # relaxed: a request that ends just as the trace begins may be in it or not.
    return trace.buffer.load(memory_order_relaxed) != NULL

cdef void record_entry(TraceState* trace, TraceEntry entry) noexcept nogil
