"""What is taken from the backlog for one run, and its end.

README.md, "Batching".
"""

cimport cython
from deepsched.runtime.batch_plan cimport expected_ns, learn_likeness, most_together
from deepsched.runtime.batching cimport add_mate, begin_batch, goes_with, pop_mate
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.inbox cimport defer, flush
from deepsched.runtime.posix cimport sched_yield
from deepsched.runtime.queue cimport Head
from deepsched.runtime.request cimport NO_DEADLINE, begin, finish
from deepsched.runtime.runner cimport is_short
from deepsched.runtime.turnstile cimport FEW_CALLERS, LONG_TOGETHER_NS
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed

# Up to this run length a crowd's callers are let go first; of runs below LONG_TOGETHER_NS they take
# turns.
cdef uint64_t MAX_YIELDING_NS = 100_000

# One yield lets each of those that are ready on this core go on until it waits.
cdef int MAX_YIELDS = 4

# A yield that took longer gave the core to somebody else, for a time slice.
cdef uint64_t LONG_YIELD_NS = 1_000_000
cdef uint64_t MIN_YIELD_PAUSE_NS = 100_000_000
cdef uint64_t MAX_YIELD_PAUSE_NS = 6_400_000_000


@cython.final
@cython.no_gc_clear  # as Dispatcher
cdef class Gatherer:
    """Pops requests for the owners of a context's core groups."""

    def __cinit__(
        self, Backlog backlog not None, CoreGroups groups not None, WorkerPool pool not None,
        Runner runner not None, Turnstile turnstile not None, ExpectedLoad load not None,
    ):
        self.backlog = backlog
        self.groups = groups
        self.pool = pool
        self.runner = runner
        self.turnstile = turnstile
        self.load = load
        self.yield_pause_ns.store(MIN_YIELD_PAUSE_NS, memory_order_relaxed)

    cdef bint pop(self, RequestState** request) noexcept nogil:
        if not self.backlog.try_pop(<void**>request):
            return False
        self.load.subtract(request[0])
        return True

    cdef void let_callers_queue(
        self, RequestState* request, DeferredNotification* owed
    ) noexcept nogil:
        """Before `request`, which has been popped, is begun: lets callers go first who have one of
        theirs to queue, and would use this core now.

        README, "Batching". For runs so short that their callers' way through the GIL takes longer.
        """
        # relaxed, here and below: hints.
        cdef uint64_t begin, end, pause_ns
        cdef uint64_t typical_ns = request.model.typical_ns.load(memory_order_relaxed)
        cdef size_t num_before
        cdef int i
        if (
            request.priority > 0 or request.deadline_ns != NO_DEADLINE  # it cannot wait
            or not LONG_TOGETHER_NS <= typical_ns < MAX_YIELDING_NS
            or self.turnstile.num_callers() <= FEW_CALLERS * self.groups.num_groups
        ):
            return
        begin = now_ns()
        if begin < self.yields_again_ns.load(memory_order_relaxed):
            return
        flush(owed)  # none waits for a time slice
        for i in range(MAX_YIELDS):
            num_before = self.backlog.places.load(memory_order_relaxed)
            sched_yield()
            if self.backlog.places.load(memory_order_relaxed) <= num_before:
                break
        end = now_ns()
        pause_ns = self.yield_pause_ns.load(memory_order_relaxed)
        if end - begin > LONG_YIELD_NS:
            self.yields_again_ns.store(end + pause_ns, memory_order_relaxed)
            pause_ns = min(2 * pause_ns, MAX_YIELD_PAUSE_NS)
        elif pause_ns > MIN_YIELD_PAUSE_NS:
            pause_ns -= pause_ns // 8
        self.yield_pause_ns.store(pause_ns, memory_order_relaxed)

    cdef bint others_wait(self, RequestState* request) noexcept nogil:
        """Whether more requests wait than streams are free, or have been given to a worker that is
        waking. Not looked at for a request without a deadline, for which it does not matter."""
        # relaxed: a hint.
        cdef size_t num_waiting = self.backlog.places.load(memory_order_relaxed)
        cdef size_t num_free
        if request.deadline_ns == NO_DEADLINE:
            return False
        num_free = self.groups.num_groups - self.groups.num_claimed()
        return num_waiting > num_free and num_waiting > num_free + self.pool.num_waking()

    cdef int gather(self, Batch* batch, int width, DeferredNotification* owed) noexcept nogil:
        """Pops what waits and may run together with the request that the caller has begun, for a group
        of `width` streams. README, "Batching". Returns how many it has ended without a run."""
        cdef RequestState* mate
        # acquire: pairs with set_batching.
        cdef BatchPlan* plan = batch.first.model.plan.load(memory_order_acquire)
        cdef uint32_t most
        cdef int num_ended = 0
        cdef Batch ended
        cdef Head head
        if most_together(plan) == 1 or not self.backlog.peek(batch.first.priority, &head):
            return 0
        learn_likeness(plan, goes_with(batch, &head.tag, plan.most))
        if not batch.first.batch_key:
            return 0
        if (
            is_short(batch.first.model)
            # relaxed: a hint.
            and self.backlog.places.load(memory_order_relaxed) <= <size_t>self.groups.num_groups
        ):
            return 0  # waking their callers all at once costs more than the runs
        most = self.fair_share(batch.first, plan, width)
        while True:
            mate = pop_mate(self.backlog, batch, plan, most)
            if mate == NULL:
                return num_ended
            self.load.subtract(mate)
            if begin(mate, self.others_wait(mate)):
                add_mate(batch, mate)
            else:
                begin_batch(&ended, mate)
                finish_batch(&ended, owed)
                num_ended += 1

    cdef uint32_t fair_share(
        self, RequestState* first, BatchPlan* plan, int width
    ) noexcept nogil:
        """How many units a run of `first` may have, so that the streams that this model's requests
        use, or are about to, get as many each."""
        # relaxed: hints.
        cdef uint32_t num_units = 0, num_streams = 1 + self.runner.num_running(
            first.model, &num_units
        )
        cdef int num_free = self.groups.num_groups - self.groups.num_claimed()
        # What waits is taken to be as large.
        num_units += first.num_units * <uint32_t>(
            1 + self.backlog.places.load(memory_order_relaxed)
        )
        # A stream that has yet to wake takes nothing of what is over before that.
        if num_free > 0 and expected_ns(plan, min(num_units, plan.most)) > self.pool.wake_ns():
            num_streams += num_free // width
        return min(plan.most, (num_units + num_streams - 1) // num_streams)


cdef void finish_batch(Batch* batch, DeferredNotification* owed) noexcept nogil:
    """Lets their callers have what has ended; these may free it from here on."""
    cdef RequestState* request = batch.first
    cdef RequestState* following
    cdef void* inbox
    while request != NULL:
        following = request.next_mate
        inbox = finish(request)
        if inbox != NULL:
            defer(owed, inbox)
        request = following
