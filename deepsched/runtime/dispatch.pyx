"""Requests meet core groups: claim or queue, run, complete.

README.md, "A request's life" and "No lost wake-up", is the argument; this is the code.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from deepsched.runtime.completion cimport (
    WAIT_DONE, WaitResult, complete, is_complete, wait_for,
)
from deepsched.runtime.futex cimport (
    EINTR, WAKE_ALL, futex_wait, futex_wake, now_ns, pause,
)
from deepsched.runtime.ort cimport OrtSession
from deepsched.runtime.pool cimport fork_generation, one_cpu
from deepsched.runtime.posix cimport (
    MAX_CPUS, CpuMask, get_mask, is_main_thread, sched_getcpu, set_mask,
)
from deepsched.runtime.request cimport (
    CANCELLED, QUEUED, REFUSED, RUNNING, begin, new_request, run_request,
)
from deepsched.runtime.session cimport Session
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acq_rel, memory_order_relaxed, memory_order_seq_cst

from deepsched.errors import ClosedError, ForkError, InputError, StreamConfigError

# A run this short is not pinned where its caller stands on one of the group's CPUs already. Setting
# the affinity and putting it back costs 1.6 us, about as much as the run; the kernel hardly moves a
# thread within microseconds, and ORT hardly uses its other threads.
cdef uint64_t SHORT_RUN_NS = 30_000

# Python's signal handlers run in the main thread only, and not while it is inside ORT: so runs
# longer than this are left to a worker there, and the main thread waits where Ctrl-C reaches it.
cdef uint64_t INLINE_IN_MAIN_NS = 50_000_000
# A signal can arrive between our last look and the sleep; the main thread looks again this often.
cdef int64_t SIGNAL_CHECK_NS = 100_000_000


@cython.final
@cython.no_gc_clear  # the workers use the members until __dealloc__ has stopped them
cdef class Dispatcher:
    """The queue, the core groups and the workers of one context.

    Args:
        cpus_by_group: the CPUs of each group (OS numbers), or None for groups without CPUs of
            their own. The thread that calls Run stands on the first, ORT's on the others.
        queue_capacity: how many requests may wait; rounded up to a power of two.
        spin_ns: how long a worker looks for another request before it gives up its group.
        thread_prefix: the workers' names are "<thread_prefix>-s0" and so on.
    """

    def __cinit__(
        self, list cpus_by_group, *, size_t queue_capacity, int64_t spin_ns, str thread_prefix
    ):
        cdef int group, num_groups = len(cpus_by_group)
        self.generation = fork_generation()
        self.queue = RequestQueue(queue_capacity)
        self.groups = CoreGroups(num_groups)
        self.pool = WorkerPool(num_groups)
        self.abandoned = []
        self.is_pinned = cpus_by_group[0] is not None
        self.spin_ns = spin_ns
        self.masks = <CpuMask*>calloc(num_groups, sizeof(CpuMask))
        self.group_of_cpu = <int*>calloc(MAX_CPUS, sizeof(int))
        if self.masks == NULL or self.group_of_cpu == NULL:
            raise MemoryError(f"no memory for {num_groups} core groups")
        for cpu in range(MAX_CPUS):
            self.group_of_cpu[cpu] = -1
        if self.is_pinned:
            for group in range(num_groups):
                for cpu in cpus_by_group[group]:
                    if cpu >= MAX_CPUS:
                        raise StreamConfigError(f"CPU {cpu} is beyond the {MAX_CPUS} of Linux")
                    self.group_of_cpu[cpu] = group
                one_cpu(&self.masks[group], cpus_by_group[group][0])
        self.pool.start(_serve, <void*>self, self.masks, thread_prefix)

    def __dealloc__(self):
        if self.generation == fork_generation() and self.pool is not None:
            self.pool.stop()
            free(self.masks)
            free(self.group_of_cpu)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that made the dispatcher."""
        return self.generation != fork_generation()

    @property
    def num_busy(self) -> int:
        """How many groups are claimed right now."""
        return self.groups.num_claimed()

    def close(self) -> None:
        """Ends the workers. Every model must have been closed."""
        if self.generation == fork_generation():
            self.pool.stop()

    # --- Without the GIL --------------------------------------------------------------------

    cdef Submitted submit(
        self, RequestState* request, bint may_inline, int64_t patience_ns
    ) noexcept nogil:
        """Claim a group and run here, or queue. `patience_ns` bounds one wait for space."""
        cdef int here, group, error
        cdef uint32_t epoch
        # First come, first served: nobody overtakes a request that waits.
        if may_inline and not self.queue.has_items():
            here = self.here()
            group = self.groups.claim(here)
            if group >= 0:
                # relaxed: no other thread knows this request.
                request.stage.store(RUNNING, memory_order_relaxed)
                self.run_inline(request, group, group == here)
                self.leave_group(group)
                return SERVED
        request.by_worker = True
        while not self.queue.try_push(request):
            # README, "Waiting for space". seq_cst: register, then look again.
            epoch = self.space.load(memory_order_seq_cst)
            self.space_waiters.fetch_add(1, memory_order_seq_cst)
            if self.queue.try_push(request):
                self.space_waiters.fetch_sub(1, memory_order_relaxed)
                break
            if request.model.closing.load(memory_order_seq_cst):
                self.space_waiters.fetch_sub(1, memory_order_relaxed)
                return CLOSED
            error = futex_wait(&self.space, epoch, patience_ns)
            # relaxed: deregistering late only costs a wake-up too many.
            self.space_waiters.fetch_sub(1, memory_order_relaxed)
            if error:
                return INTERRUPTED
        # From here on the request may end, and be freed by nobody but its caller, any time.
        self.kick()
        return ACCEPTED

    cdef void run_inline(self, RequestState* request, int group, bint is_there) noexcept nogil:
        """Runs on the calling thread, on the group's first core, and puts its affinity back.

        ORT's threads stand on the others. Left to itself inside the group, the kernel lets the
        caller share a core with one of them, for seconds: half the speed on two cores.
        """
        cdef CpuMask own
        # The mask is read anew each time: the thread's owner may have changed it. If someone
        # changes it during the run, from outside, we put the older one back.
        cdef bint moved = (
            self.is_pinned
            and not (is_there and is_short(request.model))
            and get_mask(&own) >= 0
            and set_mask(&self.masks[group]) == 0
        )
        run_request(request, group)
        if moved:
            set_mask(&own)

    cdef int here(self) noexcept nogil:
        """The group of the core we run on: going to another one costs a migration."""
        if not self.is_pinned:
            return -1
        cdef int cpu = sched_getcpu()
        return self.group_of_cpu[cpu] if 0 <= cpu < MAX_CPUS else -1

    cdef void kick(self) noexcept nogil:
        """Hands a free group, if there is one, to its worker: something has been queued."""
        cdef int group = self.groups.claim(-1)
        if group >= 0:
            self.pool.wake(group)

    cdef void leave_group(self, int group) noexcept nogil:
        """Gives up a group after an inline run: to its worker if requests wait, else free."""
        if self.queue.has_items():
            self.pool.wake(group)
            return
        self.groups.release(group)
        # Release, then look again: README, "No lost wake-up".
        if self.queue.has_items():
            self.kick()

    cdef bint pop(self, RequestState** request) noexcept nogil:
        if not self.queue.try_pop(<void**>request):
            return False
        # seq_cst: after the slot was freed; pairs with the registration in submit.
        if self.space_waiters.load(memory_order_seq_cst):
            self.space.fetch_add(1, memory_order_seq_cst)
            futex_wake(&self.space, 1)
        return True

    cdef void serve(self, int group) noexcept nogil:
        """A worker's turn: owns `group` on entry, has given it up on return."""
        cdef RequestState* request = NULL
        cdef uint64_t dry_since
        cdef int mine
        while True:
            while self.pop(&request):
                if self.queue.has_items():
                    # Pushers each wake one worker, but may find none free while we hold on to a
                    # group that we then leave: whoever takes a request passes the word on.
                    self.kick()
                if begin(request):
                    run_request(request, group)
                complete(&request.completion)  # its caller may free it from here on
            dry_since = now_ns()
            while not self.queue.has_items() and <int64_t>(now_ns() - dry_since) < self.spin_ns:
                pause()
            if self.queue.has_items():
                continue
            self.groups.release(group)
            # Release, then look again: README, "No lost wake-up".
            if not self.queue.has_items():
                return
            mine = self.groups.claim(group)
            if mine != group:
                if mine >= 0:
                    self.pool.wake(mine)
                return  # every group has an owner, and each looks at the queue when it leaves

    # --- With the GIL -------------------------------------------------------------------------

    cdef wait(self, Request request):
        """Waits for a queued request. A signal's exception withdraws it and goes up at once."""
        cdef WaitResult result
        cdef int64_t patience_ns = SIGNAL_CHECK_NS if is_main_thread() else -1
        while True:
            with nogil:
                result = wait_for(&request.state.completion, patience_ns)
            if result == WAIT_DONE:
                return
            try:
                PyErr_CheckSignals()
            except BaseException:
                self.abandon(request)
                raise

    cdef abandon(self, Request request):
        """Nobody waits for `request` any more, but a worker or the queue still points to it."""
        cdef uint32_t queued = QUEUED
        # acq_rel: against begin(); exactly one of the two wins.
        if not request.state.stage.compare_exchange_strong(
            queued, CANCELLED, memory_order_acq_rel
        ):
            request.stop_running()
        # An own reference, that the garbage collector cannot see through: reap() gives it back.
        Py_INCREF(request)
        self.abandoned.append(request)

    cdef reap(self):
        """Lets go of abandoned requests that have ended."""
        cdef Request request
        waiting, self.abandoned = self.abandoned, []
        for request in waiting:
            if is_complete(&request.state.completion):
                (<Model>request.owner).leave()
                Py_DECREF(request)
            else:
                self.abandoned.append(request)


cdef bint is_short(ModelState* model) noexcept nogil:
    # relaxed: a statistic; 0 until the first run.
    return 0 < model.typical_ns.load(memory_order_relaxed) < SHORT_RUN_NS


cdef void _serve(void* dispatcher, int group) noexcept nogil:
    (<Dispatcher>dispatcher).serve(group)


@cython.final
cdef class Model:
    """One model's sessions, one for each core group of `dispatcher`."""

    def __cinit__(self, Dispatcher dispatcher, list sessions):
        cdef Session session
        cdef int group
        self.dispatcher = dispatcher
        self.sessions = sessions
        session = sessions[0]
        self.inputs = session.describe_inputs()
        self.outputs = session.describe_outputs()
        self.input_names = [info.name.encode() for info in self.inputs]
        self.output_names = [info.name.encode() for info in self.outputs]
        self.state.num_outputs = len(self.outputs)
        self.state.sessions = <OrtSession**>calloc(len(sessions), sizeof(OrtSession*))
        self.state.output_names = <const char**>calloc(len(self.outputs) + 1, sizeof(char*))
        if self.state.sessions == NULL or self.state.output_names == NULL:
            raise MemoryError("no memory for a model")
        for group, session in enumerate(sessions):
            self.state.sessions[group] = session.handle
        for i, name in enumerate(self.output_names):
            self.state.output_names[i] = <bytes>name

    def __dealloc__(self):
        free(self.state.sessions)
        free(self.state.output_names)

    def run(self, list inputs) -> list:
        """Runs one request and returns its outputs; blocks. `inputs` in the graph's order."""
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Submitted submitted = INTERRUPTED  # not accepted by anyone yet
        cdef Request request
        cdef uint64_t typical_ns
        cdef bint may_inline
        if dispatcher.generation != fork_generation():
            raise ForkError(
                "this engine was made before os.fork() and its threads exist only in the parent; "
                "make a new engine in the child, or start workers with the 'spawn' method"
            )
        if self.state.closing.load(memory_order_relaxed):  # relaxed: enter() looks again
            raise ClosedError("this engine is closed; compile the model again to use it")
        if len(inputs) != len(self.inputs):
            names = ", ".join(repr(info.name) for info in self.inputs)
            raise InputError(
                f"expected a list of {len(self.inputs)} input{'s' * (len(self.inputs) != 1)} "
                f"({names}), got {len(inputs)}"
            )
        request = new_request(self, &self.state, self.inputs, self.input_names, inputs)
        if dispatcher.abandoned:
            dispatcher.reap()
        if not self.enter():
            raise ClosedError("this engine is closed; compile the model again to use it")
        # relaxed: a statistic. 0, not yet known, counts as long.
        typical_ns = self.state.typical_ns.load(memory_order_relaxed)
        may_inline = 0 < typical_ns < INLINE_IN_MAIN_NS or not is_main_thread()
        try:
            if not may_inline:
                request.make_stoppable()
            while True:
                with nogil:
                    submitted = dispatcher.submit(&request.state, may_inline, SIGNAL_CHECK_NS)
                if submitted != INTERRUPTED:
                    break
                PyErr_CheckSignals()
            if submitted == ACCEPTED:
                dispatcher.wait(request)
        except BaseException:
            # Either it was never queued, or wait() has abandoned it: then reap() leaves for us.
            if submitted != ACCEPTED:
                self.leave()
            raise
        self.leave()
        if submitted == CLOSED or request.state.stage.load(memory_order_relaxed) == REFUSED:
            raise ClosedError("the engine was closed before this request could run")
        if dispatcher.records is not None:
            dispatcher.records.append(request.record)
        return request.take_outputs()

    cdef bint enter(self) noexcept nogil:
        """Counts a call in; False where the model is closing.

        seq_cst, here and in close(): either we see `closing`, or close() sees us counted.
        """
        self.state.in_flight.fetch_add(1, memory_order_seq_cst)
        if self.state.closing.load(memory_order_seq_cst):
            self.leave()
            return False
        return True

    cdef void leave(self) noexcept nogil:
        """Counts a call out. The caller still holds a reference to this model."""
        self.state.in_flight.fetch_sub(1, memory_order_seq_cst)
        if self.state.closing.load(memory_order_seq_cst):
            futex_wake(&self.state.in_flight, WAKE_ALL)

    def close(self) -> None:
        """Refuses new requests, ends the queued ones as closed, waits for the running ones."""
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Session session
        cdef uint32_t in_flight
        if dispatcher.generation != fork_generation():
            return  # the threads and the sessions are the parent's
        self.state.closing.store(1, memory_order_seq_cst)
        # Whoever waits for space in the queue looks at `closing` again.
        dispatcher.space.fetch_add(1, memory_order_seq_cst)
        futex_wake(&dispatcher.space, WAKE_ALL)
        while True:
            dispatcher.reap()
            in_flight = self.state.in_flight.load(memory_order_seq_cst)
            if in_flight == 0:
                break
            with nogil:
                # In slices: an abandoned request wakes nobody, and a signal may arrive.
                futex_wait(&self.state.in_flight, in_flight, SIGNAL_CHECK_NS)
            PyErr_CheckSignals()
        for session in self.sessions:
            session.close()
