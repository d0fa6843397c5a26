from deepsched.runtime.backlog cimport Backlog
from deepsched.runtime.batching cimport Batch
from deepsched.runtime.elastic cimport Elastic
from deepsched.runtime.expected_load cimport ExpectedLoad
from deepsched.runtime.gathering cimport Gatherer
from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.pins cimport Pins
from deepsched.runtime.pool cimport WorkerPool
from deepsched.runtime.posix cimport CpuMask
from deepsched.runtime.request cimport Request, RequestState, Stage
from deepsched.runtime.runner cimport Runner
from deepsched.runtime.stopping cimport RunSlots
from deepsched.runtime.tracing cimport Tracer
from deepsched.runtime.turnstile cimport Turnstile
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum WakePolicy:
    # Whether to leave asleep the worker whose core a producer uses: a thread that queues short
    # runs and goes on working. README, "Who is woken".
    WAKE_ANY  # wake any
    SPARE_CALLER  # leave it asleep; the caller is the producer
    SPARE_PRODUCER  # leave it asleep; the caller is another thread, and serves short runs

cdef enum Submitted:
    SERVED  # ran inline; complete
    ACCEPTED  # queued; its completion will come
    CLOSED  # not accepted: the model is closed
    FULL  # not accepted yet: no space within the caller's patience, or a signal arrived

cdef class Dispatcher:
    cdef readonly Backlog backlog
    cdef CoreGroups groups
    cdef readonly Elastic elastic  # None: every request takes one stream
    cdef bint is_elastic
    cdef readonly int num_groups  # the streams, and the wider groups of an elastic context
    cdef WorkerPool pool
    cdef RunSlots slots
    cdef Runner runner
    cdef Gatherer gatherer
    cdef ExpectedLoad load
    cdef readonly Pins pins
    cdef readonly Turnstile turnstile  # of callers of run(), before they submit
    cdef int* group_of_cpu
    cdef bint is_pinned
    cdef int64_t spin_ns
    # Two lists for good: other threads may be reading.
    cdef list abandoned
    cdef list orphans  # (inbox, requests still to arrive): nobody takes them but reap()
    cdef readonly uint32_t generation
    cdef readonly Tracer tracer
    cdef char _pad0[64]
    cdef atomic[int] producer_group  # the group whose core the last producer used; or -1

    cdef bint try_inline(self, RequestState* request) noexcept nogil
    cdef Submitted submit(
        self, RequestState* request, bint may_inline, int64_t patience_ns
    ) noexcept nogil
    cdef bint move_to(
        self, CpuMask* own, RequestState* request, int group, bint is_there
    ) noexcept nogil
    cdef void move_back(
        self, CpuMask* own, bint moved, RequestState* request, int group, int leaf
    ) noexcept nogil
    cdef void check_pins(self, RequestState* request, int group, int leaf) noexcept nogil
    cdef int widen(self, RequestState* request, int leaf, uint64_t own) noexcept nogil
    cdef int cpu(self) noexcept nogil
    cdef int here(self) noexcept nogil
    cdef void kick(self, WakePolicy policy) noexcept nogil
    cdef bint look_around(self, int leaf, uint64_t own, uint64_t now) noexcept nogil
    cdef void leave_group(self, int group, WakePolicy policy) noexcept nogil
    cdef int help(self, int most) noexcept nogil
    cdef uint64_t mask_of(self, int group) noexcept nogil
    cdef void run_on_worker(self, Batch* batch, int group, int leaf) noexcept nogil
    cdef int64_t hold(self, int leaf, uint64_t* own) noexcept nogil
    cdef void release_stream(self, int leaf, uint64_t own) noexcept nogil
    cdef void retry(self) noexcept nogil
    cdef int64_t serve(self, int group) noexcept nogil
    cdef int64_t spin_time(self, uint64_t typical_ns) noexcept nogil
    cdef void stop_running(self, RequestState* request, Stage reason) noexcept nogil
    cdef wait(self, Request request)
    cdef abandon(self, Request request, Stage end)
    cdef reap(self)
