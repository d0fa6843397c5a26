from deepsched.runtime.ort cimport OrtRunOptions
from deepsched.runtime.posix cimport pthread_t
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libcpp.atomic cimport atomic

cdef struct RunSlot:
    # What runs on one core group and may be stopped.
    atomic[uintptr_t] current  # the request's address; 0: nothing, or nothing that may be stopped
    atomic[uint64_t] deadline_ns  # of `current`; NO_DEADLINE for none
    atomic[uint32_t] num_stoppers  # threads between their registration and their leave
    atomic[uint32_t] is_terminated  # ORT's flag is set
    OrtRunOptions* options
    char _pad[32]

cdef enum:
    NO_DEADLINE = 0xFFFFFFFFFFFFFFFF

cdef class RunSlots:
    cdef RunSlot* slots
    cdef int num_slots
    cdef uint32_t generation
    cdef bint has_watcher
    cdef pthread_t watcher
    cdef str watcher_name
    cdef char _pad0[64]
    cdef atomic[uint64_t] watcher_wakes_ns
    cdef atomic[uint32_t] wake_epoch
    cdef atomic[uint32_t] is_closing

    cdef void begin(self, int group, uintptr_t request, uint64_t deadline_ns) noexcept nogil
    cdef bint end(self, int group) noexcept nogil
    cdef void stop(self, int group, uintptr_t request) noexcept nogil
    cdef void terminate(self, RunSlot* slot) noexcept nogil
    cdef void watch(self) noexcept nogil
    cdef start_watcher(self)
    cdef close(self)
