"""The queue of requests that wait for a core group: three priority classes, one common bound.

README.md, "The backlog". Each class is a lock-free queue; `places` counts what all of them hold.
"""

cimport cython
from deepsched.runtime.futex cimport futex_wait, futex_wake
from deepsched.runtime.posix cimport sched_yield
from deepsched.runtime.queue cimport Head, RequestQueue, Tag
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst


@cython.final
@cython.no_gc_clear  # as Dispatcher
cdef class Backlog:
    """At most `capacity` pointers, of priority -1, 0 or 1.

    Python code uses it only in tests, with integers in place of pointers.

    >>> backlog = Backlog(3)
    >>> backlog.push(7), backlog.push(8, -1), backlog.push(9, 1), backlog.push(10)
    (True, True, True, False)
    >>> backlog.pop(), backlog.pop(), backlog.pop(), backlog.pop()
    (9, 7, 8, None)
    """

    def __cinit__(self, size_t capacity):
        self.capacity = capacity
        self.urgent = RequestQueue(capacity)
        self.normal = RequestQueue(capacity)
        self.background = RequestQueue(capacity)

    cdef bint try_push(self, void* item, int priority, Tag tag, uint32_t num_own) noexcept nogil:
        """Appends `item` to its class; False where the backlog is full. Never blocks.

        `num_own`: how many of `space_waiters` are the caller itself, 0 or 1.
        """
        # seq_cst: comes after a waiter's registration (README, "Waiting for space"). No add that
        # is taken back again: that would make it look full to others for a moment.
        cdef size_t places = self.places.load(memory_order_seq_cst)
        cdef size_t most
        cdef bint pushed
        while True:
            if places >= self.capacity:
                return False
            if self.places.compare_exchange_weak(places, places + 1, memory_order_seq_cst):
                break
        # relaxed: a statistic.
        most = self.max_places.load(memory_order_relaxed)
        while places + 1 > most:
            if self.max_places.compare_exchange_weak(most, places + 1, memory_order_relaxed):
                break
        if priority == 0:
            pushed = self.normal.try_push(item, tag)
        elif priority > 0:
            pushed = self.urgent.try_push(item, tag)
        else:
            pushed = self.background.try_push(item, tag)
        if pushed:
            return True
        # A popper that has won the slot's last item has not yet given the slot back. It will, and
        # looks for waiters then, so to us this is a full queue like any other. But while we had the
        # place, another pusher may have found none and gone to sleep: we give it back as a popper
        # does.
        self.give_place_back(num_own)
        if num_own:  # about to wait; else the caller may hold the GIL
            sched_yield()  # that popper may need our core
        return False

    cdef bint try_pop(self, void** item) noexcept nogil:
        """Takes the oldest item of the class whose turn it is; False where all are empty."""
        cdef uint32_t turn
        cdef bint popped = False
        if self.urgent.has_items() or self.background.has_items():
            # No class starves: of 16 pops one prefers background, one normal, 14 urgent items.
            # relaxed: only a rotation.
            turn = self.pops.fetch_add(1, memory_order_relaxed) % 16
            if turn == 15:
                popped = self.background.try_pop(item)
            elif turn == 7:
                popped = self.normal.try_pop(item)
            popped = popped or self.urgent.try_pop(item)
        popped = popped or self.normal.try_pop(item) or self.background.try_pop(item)
        if not popped:
            return False
        self.give_place_back(0)
        return True

    cdef bint peek(self, int priority, Head* head) noexcept nogil:
        """What is known of the oldest item of a class; False where it has none, or where a more
        urgent class has one."""
        if priority < 1 and self.urgent.has_items():
            return False
        if priority > 0:
            return self.urgent.peek(head)
        if priority == 0:
            return self.normal.peek(head)
        return not self.normal.has_items() and self.background.peek(head)

    cdef bint try_pop_at(self, int priority, size_t position, void** item) noexcept nogil:
        """Takes the item that `peek` has seen; False if somebody else has."""
        cdef bint popped
        if priority > 0:
            popped = self.urgent.try_pop_at(position, item)
        elif priority == 0:
            popped = self.normal.try_pop_at(position, item)
        else:
            popped = self.background.try_pop_at(position, item)
        if popped:
            self.give_place_back(0)
        return popped

    cdef void give_place_back(self, uint32_t num_own) noexcept nogil:
        self.places.fetch_sub(1, memory_order_seq_cst)
        # seq_cst: after the place was given back; pairs with the registration of a waiter (README,
        # "Waiting for space").
        if self.space_waiters.load(memory_order_seq_cst) > num_own:
            self.announce_space(1)

    cdef bint has_items(self) noexcept nogil:
        """Whether a published item is at the head of a class."""
        return self.normal.has_items() or self.urgent.has_items() or self.background.has_items()

    # --- Waiting for space: README, "Waiting for space" -------------------------------------

    cdef int wait_for_space(self, uint32_t epoch, int64_t patience_ns) noexcept nogil:
        """Sleeps until the epoch has moved on from `epoch`. Returns 0 or an errno."""
        return futex_wait(&self.space, epoch, patience_ns)

    cdef void announce_space(self, int num_woken) noexcept nogil:
        self.space.fetch_add(1, memory_order_seq_cst)
        futex_wake(&self.space, num_woken)

    # --- With the GIL -----------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of items that wait right now."""
        return self.places.load(memory_order_relaxed)

    @property
    def max_depth(self) -> int:
        """Highest depth so far."""
        return self.max_places.load(memory_order_relaxed)

    def push(self, uintptr_t item, int priority=0) -> bool:
        cdef bint pushed
        cdef Tag tag
        tag.key = tag.deadline_ns = 0
        with nogil:
            pushed = self.try_push(<void*>item, priority, tag, 0)
        return pushed

    def pop(self) -> int | None:
        cdef void* item = NULL
        cdef bint popped
        with nogil:
            popped = self.try_pop(&item)
        return <uintptr_t>item if popped else None

    def __bool__(self) -> bool:
        return self.has_items()
