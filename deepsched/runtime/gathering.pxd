from deepsched.runtime.backlog cimport Backlog
from deepsched.runtime.batch_plan cimport BatchPlan
from deepsched.runtime.batching cimport Batch
from deepsched.runtime.expected_load cimport ExpectedLoad
from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.inbox cimport DeferredNotification
from deepsched.runtime.pool cimport WorkerPool
from deepsched.runtime.request cimport RequestState
from deepsched.runtime.runner cimport Runner
from deepsched.runtime.turnstile cimport Turnstile
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef class Gatherer:
    cdef Backlog backlog
    cdef CoreGroups groups
    cdef WorkerPool pool
    cdef Runner runner
    cdef Turnstile turnstile
    cdef ExpectedLoad load
    cdef atomic[uint64_t] yields_again_ns  # when workers may let callers go first again
    cdef atomic[uint64_t] yield_pause_ns  # how long not, after the next yield that is slow

    cdef bint pop(self, RequestState** request) noexcept nogil
    cdef void let_callers_queue(
        self, RequestState* request, DeferredNotification* owed
    ) noexcept nogil
    cdef bint others_wait(self, RequestState* request) noexcept nogil
    cdef int gather(self, Batch* batch, int width, DeferredNotification* owed) noexcept nogil
    cdef uint32_t fair_share(
        self, RequestState* first, BatchPlan* plan, int width
    ) noexcept nogil

cdef void finish_batch(Batch* batch, DeferredNotification* owed) noexcept nogil
