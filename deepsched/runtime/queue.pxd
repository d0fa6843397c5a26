from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic


cdef struct Tag:
    # What is known of an item without a look at it: whoever has not popped it may not touch it.
    uint64_t key  # of what may run together with it; 0: nothing
    uint64_t deadline_ns


cdef struct Head:
    # The oldest item, as it was seen.
    size_t position
    Tag tag


cdef struct Slot:
    atomic[size_t] turn
    void* item
    atomic[uint64_t] key
    atomic[uint64_t] deadline_ns
    char _pad[32]  # one cache line a slot: neighbours are pushed and popped by different cores


cdef class RequestQueue:
    cdef Slot* slots
    cdef size_t mask
    cdef char _pad0[64]
    cdef atomic[size_t] tail
    cdef char _pad1[56]
    cdef atomic[size_t] head
    cdef char _pad2[56]

    cdef bint try_push(self, void* item, Tag tag) noexcept nogil
    cdef bint find_head(self, size_t* position) noexcept nogil
    cdef bint try_pop(self, void** item) noexcept nogil
    cdef bint peek(self, Head* head) noexcept nogil
    cdef bint try_pop_at(self, size_t position, void** item) noexcept nogil
    cdef void* take(self, size_t position) noexcept nogil
    cdef bint has_items(self) noexcept nogil
