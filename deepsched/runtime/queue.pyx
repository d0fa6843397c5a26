"""A bounded lock-free queue, many producers and many consumers, first in first out.

D. Vyukov's bounded MPMC ring. README.md, "The queue": each slot carries a `turn` that says whose
turn it is; `tail` and `head` only hand out positions.
"""

cimport cython
from libc.stdint cimport uint64_t, uintptr_t
from deepsched.runtime.posix cimport aligned_alloc
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst


@cython.final
cdef class RequestQueue:
    """A queue of `capacity` (rounded up to a power of two) pointers.

    Python code uses it only in tests and micro-benchmarks, with integers in place of pointers.

    >>> queue = RequestQueue(2)
    >>> queue.push(7), queue.push(8), queue.push(9)
    (True, True, False)
    >>> queue.pop_if(1), queue.pop(), queue.pop(), queue.pop()
    (None, 7, 8, None)
    """

    def __cinit__(self, size_t capacity):
        cdef size_t size = 2
        cdef size_t i
        while size < capacity:
            size *= 2
        self.slots = <Slot*>aligned_alloc(64, size * sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError(f"no memory for a queue of {size} slots")
        self.mask = size - 1
        for i in range(size):
            self.slots[i].turn.store(i, memory_order_relaxed)  # relaxed: not shared yet

    def __dealloc__(self):
        free(self.slots)

    @property
    def capacity(self) -> int:
        return self.mask + 1

    cdef bint try_push(self, void* item, Tag tag) noexcept nogil:
        """Appends `item`; False where the queue is full. Never blocks."""
        # relaxed: `tail` only proposes a position; the slot's turn decides.
        cdef size_t position = self.tail.load(memory_order_relaxed)
        cdef size_t turn
        cdef Slot* slot
        while True:
            slot = &self.slots[position & self.mask]
            # seq_cst: pairs with the store in try_pop that frees the slot for this lap, and
            # orders "queue full" after a waiter's registration (README, "Waiting for space").
            turn = slot.turn.load(memory_order_seq_cst)
            if turn == position:
                # relaxed: winning the position publishes nothing; the turn below does.
                if self.tail.compare_exchange_weak(position, position + 1, memory_order_relaxed):
                    break
            elif <ptrdiff_t>(turn - position) < 0:
                return False  # still holds the item pushed one lap ago
            else:
                position = self.tail.load(memory_order_relaxed)
        slot.item = item
        # relaxed: published with the item. Atomic all the same: see peek.
        slot.key.store(tag.key, memory_order_relaxed)
        slot.deadline_ns.store(tag.deadline_ns, memory_order_relaxed)
        # seq_cst: publishes slot.item to try_pop, and comes before the pusher's look for a free
        # group (README, "No lost wake-up").
        slot.turn.store(position + 1, memory_order_seq_cst)
        return True

    cdef bint find_head(self, size_t* position) noexcept nogil:
        """The position of the oldest item; False where there is none published.

        A stale `head` cannot make it say no wrongly: the slot of a position that was popped has a
        later turn, which sends us round again.
        """
        cdef size_t turn
        while True:
            # relaxed: as for `tail` in try_push.
            position[0] = self.head.load(memory_order_relaxed)
            # seq_cst: pairs with the publishing store in try_push, and makes the slot's content
            # visible; the second half of release-then-look (README, "No lost wake-up").
            turn = self.slots[position[0] & self.mask].turn.load(memory_order_seq_cst)
            if turn == position[0] + 1:
                return True
            if <ptrdiff_t>(turn - (position[0] + 1)) < 0:
                return False

    cdef bint try_pop(self, void** item) noexcept nogil:
        """Takes the oldest item; False where there is none published. Never blocks."""
        cdef size_t position = 0
        while self.find_head(&position):
            if self.try_pop_at(position, item):
                return True
        return False

    cdef bint peek(self, Head* head) noexcept nogil:
        """What is known of the oldest item; False where there is none published.

        It may be gone by now, and its slot in use by the pusher of the next lap. What was read holds
        if `try_pop_at` wins the position: README, "The queue".
        """
        cdef Slot* slot
        if not self.find_head(&head.position):
            return False
        slot = &self.slots[head.position & self.mask]
        # relaxed: published by the turn.
        head.tag.key = slot.key.load(memory_order_relaxed)
        head.tag.deadline_ns = slot.deadline_ns.load(memory_order_relaxed)
        return True

    cdef bint try_pop_at(self, size_t position, void** item) noexcept nogil:
        """Takes the item that `find_head` has found at `position`; False if somebody else has."""
        # relaxed: winning the position publishes nothing. Its turn has been seen.
        if not self.head.compare_exchange_strong(position, position + 1, memory_order_relaxed):
            return False
        item[0] = self.take(position)
        return True

    cdef void* take(self, size_t position) noexcept nogil:
        """The item of a position that the caller has won, whose turn it has seen."""
        cdef Slot* slot = &self.slots[position & self.mask]
        cdef void* item = slot.item
        # seq_cst: gives the slot to the pusher of the next lap (our read of slot.item is before
        # it), and comes before the popper's look for pushers that wait for space.
        slot.turn.store(position + self.mask + 1, memory_order_seq_cst)
        return item

    cdef bint has_items(self) noexcept nogil:
        """Whether a published item is at the head."""
        cdef size_t position = 0
        return self.find_head(&position)

    def push(self, uintptr_t item, uint64_t key=0) -> bool:
        cdef bint pushed
        cdef Tag tag
        tag.key = key
        tag.deadline_ns = 0
        with nogil:
            pushed = self.try_push(<void*>item, tag)
        return pushed

    def pop(self) -> int | None:
        cdef void* item = NULL
        cdef bint popped
        with nogil:
            popped = self.try_pop(&item)
        return <uintptr_t>item if popped else None

    def pop_if(self, uint64_t key) -> int | None:
        """The oldest item if that has `key`; else None."""
        cdef void* item = NULL
        cdef Head head
        cdef bint popped = False
        with nogil:
            while not popped and self.peek(&head) and head.tag.key == key:
                popped = self.try_pop_at(head.position, &item)
        return <uintptr_t>item if popped else None

    def __bool__(self) -> bool:
        return self.has_items()
