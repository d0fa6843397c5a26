"""Stopping a run that is inside ONNX Runtime, and the watcher: it stops the late ones, and sends
notifications that a long run holds up.

README.md, "Stopping a run". Each core group has one run at a time, of one request or of several that
run together, so one slot and one set of ORT's run options, whose terminate flag ORT reads between
operators.
"""

cimport cython
from deepsched.runtime.futex cimport WAKE_ALL, futex_wait, futex_wake, now_ns
from deepsched.runtime.inbox cimport DeferredNotification, Inbox
from deepsched.runtime.library cimport check, library, loaded_library
from deepsched.runtime.ort cimport OrtStatus
from deepsched.runtime.pool cimport fork_generation, thread_name
from deepsched.runtime.request cimport EXPIRED, NO_DEADLINE, RequestState
from deepsched.runtime.posix cimport (
    CpuMask, aligned_alloc, pthread_join, pthread_t, sched_yield, start_thread,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memset
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

import os

from deepsched.errors import ThreadError

# How long a run may hold up a notification that its worker owes, ns: long enough that a stream of
# short runs wakes the watcher a thousand times a second at most.
cdef uint64_t LEND_NS = 1_000_000


@cython.final
cdef class RunSlots:
    """A slot for each of `num_slots` core groups, and one thread that watches their deadlines."""

    def __cinit__(self, int num_slots, str thread_prefix):
        cdef int i
        self.generation = fork_generation()
        self.watcher_name = f"{thread_prefix}-watch"
        self.slots = <RunSlot*>aligned_alloc(64, num_slots * sizeof(RunSlot))
        if self.slots == NULL:
            raise MemoryError(f"no memory for {num_slots} run slots")
        memset(<void*>self.slots, 0, num_slots * sizeof(RunSlot))
        for i in range(num_slots):
            check(library().api.CreateRunOptions(&self.slots[i].options))
            self.num_slots = i + 1

    def __dealloc__(self):
        cdef int i
        if self.slots == NULL or self.generation != fork_generation():
            return
        self.close()
        for i in range(self.num_slots):
            loaded_library().api.ReleaseRunOptions(self.slots[i].options)
        free(self.slots)

    # --- The owner of the group ---------------------------------------------------------------

    cdef bint begin(
        self, int group, RequestState* first, uint32_t num_requests, uint64_t deadline_ns
    ) noexcept nogil:
        """From here to `end` the requests may be stopped; they run with the slot's options.

        False: all of them are to be stopped already. `deadline_ns`: the earliest of theirs.
        """
        cdef RunSlot* slot = &self.slots[group]
        slot.num_requests = num_requests
        # seq_cst: before our look at whether somebody has asked to stop them already, and before
        # our look at the watcher's clock. README, "Stopping a run".
        slot.current.store(first, memory_order_seq_cst)
        if deadline_ns < self.watcher_wakes_ns.load(memory_order_seq_cst):
            self.wake_watcher()
        return not is_unwanted(first, num_requests)

    cdef bint end(self, int group) noexcept nogil:
        """After the run. True if somebody stopped it, or came too late to."""
        cdef RunSlot* slot = &self.slots[group]
        cdef OrtStatus* status
        # seq_cst: either a stopper sees 0 here, or we see it registered and wait: it must not set
        # the flag of the next run. It stays registered for a few instructions.
        slot.current.store(NULL, memory_order_seq_cst)
        while slot.num_stoppers.load(memory_order_seq_cst):
            sched_yield()
        # relaxed: ordered by the registration of whoever wrote it.
        if not slot.is_terminated.load(memory_order_relaxed):
            return False
        slot.is_terminated.store(0, memory_order_relaxed)
        status = loaded_library().api.RunOptionsUnsetTerminate(slot.options)
        if status != NULL:
            loaded_library().api.ReleaseStatus(status)
        return True

    cdef void lend(self, int group, DeferredNotification* owed) noexcept nogil:
        """Before a run: lets the watcher notify, should the run outlast LEND_NS."""
        cdef RunSlot* slot = &self.slots[group]
        cdef uint64_t by_ns
        if owed.inbox == NULL:
            return
        by_ns = owed.since_ns + LEND_NS
        slot.owed_by_ns.store(by_ns, memory_order_relaxed)  # published by `owed_inbox`
        # seq_cst, both: as in begin(), either the watcher sees this, or we see when it wakes.
        slot.owed_inbox.store(<uintptr_t>owed.inbox, memory_order_seq_cst)
        if by_ns < self.watcher_wakes_ns.load(memory_order_seq_cst):
            self.wake_watcher()

    cdef void take_back(self, int group, DeferredNotification* owed) noexcept nogil:
        """After the run: what is owed still, if the watcher has not seen to it."""
        # The exchange decides which of the two notifies; the hold on the inbox goes with it.
        # acquire and release carry nothing here; seq_cst keeps to the rule of the other side.
        if owed.inbox != NULL and not self.slots[group].owed_inbox.exchange(
            0, memory_order_seq_cst
        ):
            owed.inbox = NULL

    cdef void wake_watcher(self) noexcept nogil:
        self.wake_epoch.fetch_add(1, memory_order_seq_cst)
        futex_wake(&self.wake_epoch, 1)

    # --- Everybody else -----------------------------------------------------------------------

    cdef void stop(self, int group) noexcept nogil:
        """Asks ORT to end what runs there at the next operator, if nobody wants it any more."""
        cdef RunSlot* slot = &self.slots[group]
        slot.num_stoppers.fetch_add(1, memory_order_seq_cst)
        self.stop_unwanted(slot)
        slot.num_stoppers.fetch_sub(1, memory_order_seq_cst)

    cdef void stop_unwanted(self, RunSlot* slot) noexcept nogil:
        """The same, for who is registered in `slot`."""
        cdef OrtStatus* status
        cdef RequestState* first = slot.current.load(memory_order_seq_cst)
        if first == NULL or not is_unwanted(first, slot.num_requests):
            return
        # relaxed: of several stoppers one sets ORT's flag; end() is ordered by num_stoppers.
        if not slot.is_terminated.exchange(1, memory_order_relaxed):
            status = loaded_library().api.RunOptionsSetTerminate(slot.options)
            if status != NULL:
                loaded_library().api.ReleaseStatus(status)

    cdef int try_start_watcher(self):
        """Starts the watcher, if it does not run yet. Returns 0 or an errno."""
        cdef CpuMask anywhere
        cdef int error
        # relaxed: whoever sees it late only defers later, or looks again below.
        if self.is_watched.load(memory_order_relaxed):
            return 0
        name = thread_name(self.watcher_name)
        anywhere.num_bytes = 0
        # Nothing in here allocates, and so runs a finalizer that closes this.
        with cython.critical_section(self):
            # While it closes, a request that comes here is refused a moment later. relaxed: ordered
            # by the critical section.
            if self.has_watcher or self.is_closing.load(memory_order_relaxed):
                return 0
            error = start_thread(&self.watcher, name, &anywhere, _watcher_main, <void*>self)
            if error:
                return error
            self.has_watcher = True
            self.is_watched.store(1, memory_order_relaxed)
        return 0

    cdef start_watcher(self):
        """Starts the watcher, for a request that must not run without.

        Raises:
            ThreadError: the system refuses the thread.
        """
        cdef int error = self.try_start_watcher()
        if error:
            raise ThreadError(
                error,
                f"could not start the thread that watches timeouts: {os.strerror(error)}. A "
                "container limits threads by pids.max",
            )

    cdef close(self):
        """Ends the watcher, once. Nothing may run any more."""
        cdef bint has_watcher
        cdef pthread_t watcher
        if self.generation != fork_generation():
            return
        # Of two callers one finds the watcher, and nobody starts another.
        with cython.critical_section(self):
            has_watcher = self.has_watcher
            watcher = self.watcher
            self.has_watcher = False
            self.is_closing.store(1, memory_order_seq_cst)
        if not has_watcher:
            return
        with nogil:
            self.wake_epoch.fetch_add(1, memory_order_seq_cst)
            futex_wake(&self.wake_epoch, WAKE_ALL)
            pthread_join(watcher, NULL)

    cdef void watch(self) noexcept nogil:
        """The watcher's life: stop what is late, sleep until the next deadline."""
        cdef uint64_t now, earliest
        cdef uint32_t epoch
        cdef RunSlot* slot
        cdef int group
        while not self.is_closing.load(memory_order_seq_cst):
            # seq_cst, in this order (README, "Stopping a run"): a run that begins from here on
            # wakes us, until we have said when we wake; then only if that is too late for it.
            epoch = self.wake_epoch.load(memory_order_seq_cst)
            self.watcher_wakes_ns.store(NO_DEADLINE, memory_order_seq_cst)
            now = now_ns()
            earliest = NO_DEADLINE
            for group in range(self.num_slots):
                slot = &self.slots[group]
                earliest = min(earliest, self.watch_run(slot, now))
                earliest = min(earliest, self.watch_owed(slot, now))
            self.watcher_wakes_ns.store(earliest, memory_order_seq_cst)
            futex_wait(
                &self.wake_epoch, epoch,
                -1 if earliest == NO_DEADLINE else <int64_t>(earliest - now),
            )

    cdef uint64_t watch_run(self, RunSlot* slot, uint64_t now) noexcept nogil:
        """Stops what is late, unless others run with it; the next deadline; NO_DEADLINE: none."""
        cdef RequestState* request
        cdef uint64_t earliest = NO_DEADLINE
        cdef uint32_t i
        # Registered, so that the requests we see are those of one run, and stay.
        slot.num_stoppers.fetch_add(1, memory_order_seq_cst)
        request = slot.current.load(memory_order_seq_cst)
        if request != NULL:
            for i in range(slot.num_requests):
                if request.deadline_ns > now:
                    earliest = min(earliest, request.deadline_ns)
                else:
                    ask_to_stop(request, EXPIRED)
                request = request.next_mate
            self.stop_unwanted(slot)
        slot.num_stoppers.fetch_sub(1, memory_order_seq_cst)
        return earliest

    cdef uint64_t watch_owed(self, RunSlot* slot, uint64_t now) noexcept nogil:
        """Notifies what a worker has owed for too long; when it will have; NO_DEADLINE: nothing."""
        cdef uint64_t by_ns
        cdef uintptr_t inbox
        if not slot.owed_inbox.load(memory_order_seq_cst):
            return NO_DEADLINE
        # relaxed: published by `owed_inbox`. The worker may have taken that back since, and lent
        # another: then the time is of either, and the notification early at the worst.
        by_ns = slot.owed_by_ns.load(memory_order_relaxed)
        if by_ns > now:
            return by_ns
        inbox = slot.owed_inbox.exchange(0, memory_order_seq_cst)
        if inbox:
            (<Inbox><void*>inbox).notify_and_release()
        return NO_DEADLINE


cdef bint ask_to_stop(RequestState* request, uint32_t reason) noexcept nogil:
    """Notes that nobody waits for it any more. False: somebody has before, and sees to the rest."""
    cdef uint32_t none = 0
    # seq_cst: README, "Stopping a run".
    return request.stop_reason.compare_exchange_strong(none, reason, memory_order_seq_cst)


cdef bint is_unwanted(RequestState* request, uint32_t num_requests) noexcept nogil:
    """Whether all requests of a run are to be stopped, from the first on. For its owner, and for who is
    registered and has seen it."""
    cdef uint32_t i
    for i in range(num_requests):
        if not request.stop_reason.load(memory_order_seq_cst):
            return False
        request = request.next_mate
    return True


cdef void* _watcher_main(void* slots) noexcept nogil:
    (<RunSlots>slots).watch()
    return NULL
