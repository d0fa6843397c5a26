from deepsched.runtime.queue cimport Head, RequestQueue, Tag
from libc.stdint cimport int64_t, uint32_t
from libcpp.atomic cimport atomic

cdef enum:
    MIN_PRIORITY = -1
    MAX_PRIORITY = 1
    NUM_PRIORITIES = 3

cdef class Backlog:
    cdef RequestQueue urgent
    cdef RequestQueue normal
    cdef RequestQueue background
    cdef readonly size_t capacity
    cdef char _pad0[64]
    cdef atomic[size_t] places
    cdef atomic[size_t] max_places
    cdef char _pad1[48]
    cdef atomic[uint32_t] pops
    cdef char _pad2[60]
    cdef atomic[uint32_t] space
    cdef atomic[uint32_t] space_waiters

    cdef bint try_push(self, void* item, int priority, Tag tag, uint32_t num_own) noexcept nogil
    cdef bint try_pop(self, void** item) noexcept nogil
    cdef bint peek(self, int priority, Head* head) noexcept nogil
    cdef bint try_pop_at(self, int priority, size_t position, void** item) noexcept nogil
    cdef void give_place_back(self, uint32_t num_own) noexcept nogil
    cdef bint has_items(self) noexcept nogil
    cdef int wait_for_space(self, uint32_t epoch, int64_t patience_ns) noexcept nogil
    cdef void announce_space(self, int num_woken) noexcept nogil
