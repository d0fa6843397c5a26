from libcpp.atomic cimport atomic


cdef struct Slot:
    atomic[size_t] turn
    void* item
    char _pad[48]  # one cache line a slot: neighbours are pushed and popped by different cores


cdef class RequestQueue:
    cdef Slot* slots
    cdef size_t mask
    cdef char _pad0[64]
    cdef atomic[size_t] tail
    cdef char _pad1[56]
    cdef atomic[size_t] head
    cdef char _pad2[56]

    cdef bint try_push(self, void* item) noexcept nogil
    cdef bint try_pop(self, void** item) noexcept nogil
    cdef bint has_items(self) noexcept nogil
