"""Turns for a crowd of callers of short runs, so that few of them compete for the GIL.

README.md, "The turnstile".
"""

cimport cython
from deepsched.runtime.batch_plan cimport often_alike
from deepsched.runtime.futex cimport EINTR, futex_wait, futex_wake, now_ns
from deepsched.runtime.posix cimport SIGNAL_CHECK_NS
from deepsched.runtime.request cimport ModelState, NO_DEADLINE, RequestState
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport atomic, memory_order_acquire, memory_order_relaxed, memory_order_release

cdef enum:
    # A waiter's word. Written under the lock.
    WAITS = 0
    WATCHES = 1  # waits, and looks from time to time for leases whose holders have stopped
    GRANTED = 2
    DISMISSED = 3  # in no line: to go on without a lease

# How long a caller goes on calling before it lets another one in.
cdef uint64_t LEASE_NS = 200_000

# A holder that is so late to give its lease back has stopped calling.
cdef uint64_t OVERDUE_NS = 1_000_000

# How often the watcher looks for such leases.
cdef uint64_t WATCH_NS = 1_000_000

# A caller that is back later than this after its last call does other things between two calls.
# Its lease would lie idle meanwhile, so it takes no turns.
cdef uint64_t SOON_NS = 50_000

# Longer runs keep callers away from the GIL by themselves.
cdef uint64_t LONG_NS = 30_000

# For about so long a call holds the GIL, so no more than one can begin in that time.
cdef uint64_t GIL_NS = 4_000

cdef atomic[uint64_t] _num_turnstiles


@cython.final
@cython.no_gc
cdef class Turnstile:
    """The turns of one context's callers. `num_streams`: how many of them can run at once."""

    def __cinit__(self, int num_streams):
        # relaxed: only to be unique.
        self.id = _num_turnstiles.fetch_add(1, memory_order_relaxed) + 1
        self.num_slots = num_streams + 1
        self.slots = <Lease*>calloc(self.num_slots, sizeof(Lease))
        if self.slots == NULL:
            raise MemoryError(f"no memory for {self.num_slots} leases")

    def __dealloc__(self):
        free(self.slots)

    # --- With the GIL: who takes a turn ---------------------------------------------------------

    cdef bint come(self, RequestState* request) noexcept:
        """Counts a caller in; the same thread calls `go`. True: it must `wait_turn` before it
        submits `request`."""
        cdef Turn* turn
        cdef uint64_t now
        if not HAS_GIL:
            return False
        # relaxed, here and below: the GIL orders the changes, and workers only take a hint.
        self.num_inside.store(self.num_callers() + 1, memory_order_relaxed)
        if not self.is_crowded(request.model):
            return False
        turn = own_turn()
        if turn.turnstile != self.id:
            return False
        now = now_ns()
        if turn.lease:
            return now >= turn.until_ns or not self.holds_lease(turn)
        return now < turn.left_ns + SOON_NS

    cdef void go(self, RequestState* request) noexcept:
        cdef Turn* turn
        if not HAS_GIL:
            return
        if self.is_crowded(request.model):
            turn = own_turn()
            if turn.turnstile != self.id:
                # A lease of another turnstile is left to the watcher there.
                turn.turnstile = self.id
                turn.lease = 0
            turn.left_ns = now_ns()
        self.num_inside.store(self.num_callers() - 1, memory_order_relaxed)

    cdef int num_callers(self) noexcept nogil:
        """How many are inside `run`; 0 without a GIL, where nobody counts."""
        return self.num_inside.load(memory_order_relaxed)

    cdef bint is_crowded(self, ModelState* model) noexcept:
        """Whether the callers of `model` are so many that they take turns."""
        if self.num_callers() <= FEW_CALLERS:
            return False
        cdef int num_useful = self.num_useful(model)
        return num_useful > 0 and (
            self.num_callers() > FEW_CALLERS * num_useful
            # relaxed: a hint. Nobody overtakes who waits already.
            or self.num_waiting.load(memory_order_relaxed) > 0
        )

    cdef int num_useful(self, ModelState* model) noexcept nogil:
        """How many callers of `model` can be on their way at once without waiting for each other;
        0: its callers take no turns."""
        # relaxed: a statistic; 0 until the first run.
        cdef uint64_t typical_ns = model.typical_ns.load(memory_order_relaxed)
        cdef uint64_t long_ns = LONG_NS
        # acquire: pairs with set_batching.
        if often_alike(model.plan.load(memory_order_acquire)):
            long_ns = LONG_TOGETHER_NS
        if not 0 < typical_ns < long_ns:
            return 0
        return min(self.num_slots, 2 + <int>(typical_ns // GIL_NS))

    cdef bint holds_lease(self, Turn* turn) noexcept nogil:
        # relaxed: nothing is read through it. If it is taken away right now, one call more runs.
        return turn.lease != 0 and (
            self.slots[turn.slot].number.load(memory_order_relaxed) == turn.lease
        )

    @property
    def num_parked(self) -> int:
        """How many callers wait for their turn right now."""
        return self.num_waiting.load(memory_order_relaxed)

    @property
    def num_turns(self) -> int:
        """How many turns have been granted so far."""
        return self.num_granted.load(memory_order_relaxed)

    # --- Without the GIL ------------------------------------------------------------------------

    cdef bint wait_turn(self, RequestState* request, bint hears_signals) noexcept nogil:
        """Parks until `request` has its turn or its deadline has passed, or until all are dismissed.

        False: a signal may have come instead. The caller goes on without a turn, once it has looked.
        """
        cdef Waiter me
        cdef Turn* turn = own_turn()
        cdef uint64_t now = now_ns()
        cdef uint64_t leaves_ns = request.deadline_ns  # or NO_DEADLINE, which is the largest number
        cdef uint32_t word
        cdef int error
        if not request.submitted_ns:
            request.submitted_ns = now
        if hears_signals:
            leaves_ns = min(leaves_ns, now + SIGNAL_CHECK_NS)
        self.arrive(&me, turn, request.priority, self.num_useful(request.model), now)
        while True:
            # acquire: pairs with take_out(); what was granted is visible.
            word = me.word.load(memory_order_acquire)
            if word == GRANTED:
                turn.lease = me.lease
                turn.slot = me.slot
                turn.until_ns = now_ns() + LEASE_NS  # it has waited for a core as well
                return True
            if word == DISMISSED:
                return True
            error = futex_wait(&me.word, word, patience(now, leaves_ns, word == WATCHES))
            if me.word.load(memory_order_relaxed) != word:
                continue
            now = now_ns()
            if now >= leaves_ns or (hears_signals and error == EINTR):
                if self.withdraw(&me, now):
                    return now >= request.deadline_ns
            elif word == WATCHES:
                self.look(now)

    cpdef void dismiss_all(self) noexcept nogil:
        """Has all who wait go on without a lease."""
        cdef Waiter* waiter
        self.lock.lock()
        while True:
            waiter = self.next_in_line()
            if waiter == NULL:
                break
            self.take_out(waiter, DISMISSED)
        self.lock.unlock()

    # Each step leaves the state that settle() makes.

    cdef void arrive(
        self, Waiter* me, Turn* turn, int priority, int most, uint64_t now
    ) noexcept nogil:
        """Gives the caller's last lease back, and puts it in line for the next."""
        cdef Line* line
        me.rank = 1 - priority
        me.next = NULL
        me.word.store(WAITS, memory_order_relaxed)  # relaxed: the lock publishes it
        self.lock.lock()
        if self.holds_lease(turn):
            self.slots[turn.slot].number.store(0, memory_order_relaxed)
            self.num_leased -= 1
        turn.lease = 0
        # A model's runs may have become long since its caller looked; who waits has to go on all the
        # same.
        self.most = max(most, 1)
        line = &self.lines[me.rank]
        me.previous = line.last
        if line.last == NULL:
            line.first = me
        else:
            line.last.next = me
        line.last = me
        self.num_waiting.fetch_add(1, memory_order_relaxed)
        self.settle(now)
        self.lock.unlock()

    cdef void look(self, uint64_t now) noexcept nogil:
        self.lock.lock()
        self.settle(now)
        self.lock.unlock()

    cdef bint withdraw(self, Waiter* me, uint64_t now) noexcept nogil:
        """Takes a caller out of the line; False: it has got its turn meanwhile."""
        cdef bint waits
        self.lock.lock()
        # relaxed: written under the lock.
        waits = me.word.load(memory_order_relaxed) <= WATCHES
        if waits:
            self.take_out(me, DISMISSED)
            self.settle(now)
        self.lock.unlock()
        return waits

    cdef void settle(self, uint64_t now) noexcept nogil:
        """Grants what leases there are, and sees to it that one of those who wait watches."""
        cdef Waiter* waiter
        cdef uint64_t lease
        cdef int slot, rank
        while True:
            waiter = self.next_in_line()
            if waiter == NULL:
                return
            slot = self.find_slot(now)
            if slot < 0:
                break
            lease = self.num_granted.fetch_add(1, memory_order_relaxed) + 1
            self.num_leased += 1
            self.slots[slot].number.store(lease, memory_order_relaxed)
            self.slots[slot].until_ns = now + LEASE_NS
            waiter.lease = lease
            waiter.slot = slot
            self.take_out(waiter, GRANTED)
        if self.watcher == NULL:
            # Who will wait longest: usually who has just come, and is awake.
            rank = NUM_RANKS - 1
            while self.lines[rank].last == NULL:
                rank -= 1
            self.watcher = self.lines[rank].last
            self.watcher.word.store(WATCHES, memory_order_relaxed)
            futex_wake(&self.watcher.word, 1)

    cdef int find_slot(self, uint64_t now) noexcept nogil:
        """A slot for a lease; -1: there are as many as there may be, and their holders call."""
        cdef int slot, found = -1
        for slot in range(self.num_slots):
            # relaxed: written under the lock.
            if self.slots[slot].number.load(memory_order_relaxed):
                if now < self.slots[slot].until_ns + OVERDUE_NS:
                    continue
                self.slots[slot].number.store(0, memory_order_relaxed)
                self.num_leased -= 1
            found = slot
        return found if self.num_leased < self.most else -1

    cdef Waiter* next_in_line(self) noexcept nogil:
        """The oldest of the most urgent. Of 16 turns, one is for the oldest of each other rank."""
        cdef uint64_t turn = self.num_granted.load(memory_order_relaxed) % 16
        cdef int rank, preferred = 2 if turn == 15 else 1 if turn == 7 else 0
        if self.lines[preferred].first != NULL:
            return self.lines[preferred].first
        for rank in range(NUM_RANKS):
            if self.lines[rank].first != NULL:
                return self.lines[rank].first
        return NULL

    cdef void take_out(self, Waiter* waiter, uint32_t word) noexcept nogil:
        """Ends a wait. Its frame may be gone from the store on."""
        cdef Line* line = &self.lines[waiter.rank]
        if waiter.previous == NULL:
            line.first = waiter.next
        else:
            waiter.previous.next = waiter.next
        if waiter.next == NULL:
            line.last = waiter.previous
        else:
            waiter.next.previous = waiter.previous
        if self.watcher == waiter:
            self.watcher = NULL
        self.num_waiting.fetch_sub(1, memory_order_relaxed)
        # release: publishes the lease. The wake goes by address, as in completion.pyx.
        waiter.word.store(word, memory_order_release)
        futex_wake(&waiter.word, 1)


cdef int64_t patience(uint64_t now, uint64_t leaves_ns, bint watches) noexcept nogil:
    """How long to sleep, in ns; negative: until woken."""
    cdef int64_t watch_ns = <int64_t>WATCH_NS if watches else -1
    if leaves_ns == NO_DEADLINE:
        return watch_ns
    if leaves_ns <= now:
        return 0
    if watches and WATCH_NS < leaves_ns - now:
        return watch_ns
    return <int64_t>(leaves_ns - now)


# --- For tests ----------------------------------------------------------------------------------


@cython.final
@cython.no_gc
cdef class Caller:
    """A caller of `turnstile` that takes its steps one by one, at times of the test's own."""

    cdef Turnstile turnstile
    cdef Waiter waiter
    cdef Turn turn

    def __cinit__(self, Turnstile turnstile not None):
        self.turnstile = turnstile
        self.waiter.word.store(DISMISSED, memory_order_relaxed)

    def arrive(self, int priority, int most, uint64_t now) -> None:
        self.turnstile.arrive(&self.waiter, &self.turn, priority, most, now)

    def withdraw(self, uint64_t now) -> bool:
        return self.turnstile.withdraw(&self.waiter, now)

    def look(self, uint64_t now) -> None:
        self.turnstile.look(now)

    @property
    def state(self) -> str:
        """"waits", "watches", "holds" or "out"."""
        cdef uint32_t word = self.waiter.word.load(memory_order_acquire)
        if word == GRANTED:
            self.turn.lease = self.waiter.lease
            self.turn.slot = self.waiter.slot
            return "holds" if self.turnstile.holds_lease(&self.turn) else "out"
        return {WAITS: "waits", WATCHES: "watches"}.get(word, "out")
