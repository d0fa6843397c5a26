"""A request's one-shot end: one side completes it once, the other waits.

README.md, "Completion". Everything that the completing side wrote before `complete` is visible
after `wait_for` or `is_complete` has said so.
"""

from deepsched.runtime.futex cimport EINTR, ETIMEDOUT, futex_wait, futex_wake, now_ns
from libcpp.atomic cimport memory_order_acq_rel, memory_order_acquire, memory_order_relaxed

cdef enum:
    PENDING = 0
    WAITED_FOR = 1  # a waiter sleeps, or is about to: whoever completes must wake it
    DONE = 2


cdef void start_completion(Completion* completion) noexcept nogil:
    # relaxed: the request is published to other threads later, by the queue.
    completion.state.store(PENDING, memory_order_relaxed)


cdef void complete(Completion* completion) noexcept nogil:
    """Ends the request. The waiter may free it from the exchange on: nothing of the request may
    be touched after this call."""
    # acq_rel: the release half publishes the result to the acquire loads below.
    if completion.state.exchange(DONE, memory_order_acq_rel) == WAITED_FOR:
        # The word may be freed memory by now. A private futex is found by address alone, so at
        # the worst somebody who uses the same address wakes once too often, and looks again.
        futex_wake(&completion.state, 1)


cdef bint is_complete(Completion* completion) noexcept nogil:
    # acquire: pairs with the exchange in complete().
    return completion.state.load(memory_order_acquire) == DONE


cdef WaitResult wait_for(Completion* completion, int64_t timeout_ns) noexcept nogil:
    """Waits at most `timeout_ns` (negative: for ever). One waiter at a time."""
    cdef uint32_t seen = PENDING
    cdef int64_t deadline = now_ns() + timeout_ns
    cdef int64_t left = timeout_ns
    cdef int error
    # acquire on failure: the state may be DONE already. Success needs no order of its own.
    if not completion.state.compare_exchange_strong(
        seen, WAITED_FOR, memory_order_acq_rel, memory_order_acquire
    ):
        if seen == DONE:
            return WAIT_DONE
    while True:
        error = futex_wait(&completion.state, WAITED_FOR, left)
        if is_complete(completion):
            return WAIT_DONE
        if error == EINTR:
            return WAIT_INTERRUPTED
        if timeout_ns >= 0:
            left = deadline - <int64_t>now_ns()
            if error == ETIMEDOUT or left <= 0:
                return WAIT_TIMED_OUT
