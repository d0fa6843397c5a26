from deepsched.runtime.inbox cimport DeferredNotification
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
    # README, "Inboxes": what the worker owes while it runs; the watcher may take it over.
    atomic[uintptr_t] owed_inbox  # 0: nothing
    atomic[uint64_t] owed_by_ns  # when the watcher takes over
    char _pad[16]

cdef enum:
    NO_DEADLINE = 0xFFFFFFFFFFFFFFFF

cdef class RunSlots:
    cdef RunSlot* slots
    cdef int num_slots
    cdef uint32_t generation
    cdef bint has_watcher  # there is one to join
    cdef atomic[uint32_t] is_watched  # there is or was one
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
    cdef void lend(self, int group, DeferredNotification* owed) noexcept nogil
    cdef void wake_watcher(self) noexcept nogil
    cdef void take_back(self, int group, DeferredNotification* owed) noexcept nogil
    cdef void watch(self) noexcept nogil
    cdef uint64_t watch_owed(self, RunSlot* slot, uint64_t now) noexcept nogil
    cdef int try_start_watcher(self)
    cdef start_watcher(self)
    cdef close(self)
