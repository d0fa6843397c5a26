from deepsched.runtime.inbox cimport DeferredNotification
from deepsched.runtime.ort cimport OrtRunOptions
from deepsched.runtime.posix cimport pthread_t
from deepsched.runtime.request cimport RequestState
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libcpp.atomic cimport atomic

ctypedef RequestState* RequestPointer

cdef struct RunSlot:
    # What runs on one core group and may be stopped.
    # The first of the run's requests, that follow one another; NULL: nothing that may be stopped.
    atomic[RequestPointer] current
    uint32_t num_requests  # published by `current`
    atomic[uint32_t] num_stoppers  # threads between their registration and their leave
    atomic[uint32_t] is_terminated  # ORT's flag is set
    OrtRunOptions* options
    # README, "Inboxes": what the worker owes while it runs; the watcher may take it over.
    atomic[uintptr_t] owed_inbox  # 0: nothing
    atomic[uint64_t] owed_by_ns  # when the watcher takes over
    char _pad0[16]
    # What runs there of a model whose requests run together, stoppable or not: its number, and the
    # items. 0: nothing. A hint.
    atomic[uint64_t] running
    char _pad1[56]

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

    cdef bint begin(
        self, int group, RequestState* first, uint32_t num_requests, uint64_t deadline_ns
    ) noexcept nogil
    cdef bint end(self, int group) noexcept nogil
    cdef void stop(self, int group) noexcept nogil
    cdef void stop_unwanted(self, RunSlot* slot) noexcept nogil
    cdef void lend(self, int group, DeferredNotification* owed) noexcept nogil
    cdef void wake_watcher(self) noexcept nogil
    cdef void take_back(self, int group, DeferredNotification* owed) noexcept nogil
    cdef void watch(self) noexcept nogil
    cdef uint64_t watch_run(self, RunSlot* slot, uint64_t now) noexcept nogil
    cdef uint64_t watch_owed(self, RunSlot* slot, uint64_t now) noexcept nogil
    cdef int try_start_watcher(self)
    cdef start_watcher(self)
    cdef close(self)

cdef bint ask_to_stop(RequestState* request, uint32_t reason) noexcept nogil
