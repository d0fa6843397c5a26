from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.pool cimport WorkerPool
from deepsched.runtime.posix cimport CpuMask
from deepsched.runtime.queue cimport RequestQueue
from deepsched.runtime.request cimport ModelState, Request, RequestState
from libc.stdint cimport int64_t, uint32_t
from libcpp.atomic cimport atomic

cdef enum Submitted:
    SERVED  # ran inline; complete
    ACCEPTED  # queued; its completion will come
    CLOSED  # not accepted: the model is closed
    INTERRUPTED  # not accepted yet: a signal arrived while the queue was full

cdef class Dispatcher:
    cdef RequestQueue queue
    cdef CoreGroups groups
    cdef WorkerPool pool
    cdef CpuMask* masks  # by group: where the thread that calls Run stands; empty for anywhere
    cdef int* group_of_cpu
    cdef bint is_pinned
    cdef int64_t spin_ns
    cdef list abandoned
    cdef uint32_t generation
    cdef public list records
    cdef char _pad0[64]
    cdef atomic[uint32_t] space
    cdef atomic[uint32_t] space_waiters

    cdef Submitted submit(
        self, RequestState* request, bint may_inline, int64_t patience_ns
    ) noexcept nogil
    cdef void run_inline(self, RequestState* request, int group, bint is_there) noexcept nogil
    cdef int here(self) noexcept nogil
    cdef void kick(self) noexcept nogil
    cdef void leave_group(self, int group) noexcept nogil
    cdef bint pop(self, RequestState** request) noexcept nogil
    cdef void serve(self, int group) noexcept nogil
    cdef wait(self, Request request)
    cdef abandon(self, Request request)
    cdef reap(self)

cdef class Model:
    cdef ModelState state
    cdef readonly Dispatcher dispatcher
    cdef readonly list inputs
    cdef readonly list outputs
    cdef list sessions
    cdef list input_names
    cdef list output_names
    cdef bint enter(self) noexcept nogil
    cdef void leave(self) noexcept nogil
