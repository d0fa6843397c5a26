from deepsched.runtime.dispatch cimport Dispatcher
from deepsched.runtime.inbox cimport Inbox
from deepsched.runtime.request cimport ModelState, Request
from libc.stdint cimport uint32_t, uint64_t

cdef class Model:
    cdef ModelState state
    cdef readonly uint32_t number
    cdef readonly Dispatcher dispatcher
    cdef Model moved_to  # None: it has not moved
    cdef readonly list inputs
    cdef readonly list overridable
    cdef readonly list outputs
    cdef list sessions
    cdef list all_inputs  # inputs, then overridable
    cdef list input_names  # of all_inputs
    cdef list output_names

    cdef Request prepare(
        self, list inputs, object timeout, object priority, bint check_inputs, bint shrinks=*
    )
    cdef object start_prepared(
        self, Request request, Inbox inbox, object tag, bint block, bint is_producer,
        bint may_inline=*
    )
    cdef bint submit_and_wait(self, Request request, bint needs_turn) except -1
    cdef bint check_interrupts(self, Request request) except -1
    cdef Model find_current(self)
    cdef Model successor(self)
    cdef wait_until_idle(self)
    cpdef check_fork(self)
