from libc.stdint cimport int64_t, uint32_t
from libcpp.atomic cimport atomic

cdef enum WaitResult:
    WAIT_DONE
    WAIT_TIMED_OUT
    WAIT_INTERRUPTED  # a signal arrived; the caller decides whether to wait on

cdef struct Completion:
    atomic[uint32_t] state  # PENDING -> [WAITED_FOR ->] DONE, once

cdef void start_completion(Completion* completion) noexcept nogil
cdef void complete(Completion* completion) noexcept nogil
cdef bint is_complete(Completion* completion) noexcept nogil
cdef WaitResult wait_for(Completion* completion, int64_t timeout_ns) noexcept nogil
