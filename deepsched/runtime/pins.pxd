from deepsched.runtime.posix cimport CpuMask, pthread_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef class Pins:
    cdef CpuMask* masks  # by group: where the thread that calls Run is pinned; empty for anywhere
    cdef int* first_cpu  # by group; -1 without pinning
    cdef bint is_pinned
    cdef CpuMask home  # of the thread that made this; num_bytes is 0 if unknown
    cdef CpuMask widest  # what gives a thread that mask, and lets it grow with its cpuset
    cdef uint64_t* checked_ns  # by group; only its owner uses it
    cdef atomic[uint8_t]* is_lost  # by CPU
    cdef atomic[uint32_t] num_changes  # of is_lost, so far
    cdef atomic[uint64_t] changed_ns  # when the last one was noticed
    cdef atomic[uint32_t] num_told  # of the changes
    cdef list told  # the lost CPUs then; in a critical section

    cdef bint move(self, CpuMask* own, int group) noexcept nogil
    cdef void put_back(self, CpuMask* own) noexcept nogil
    cdef void move_worker(self, int group) noexcept nogil
    cdef bint is_due(self, int group, uint64_t now) noexcept nogil
    cdef void check(self, pthread_t thread, int cpu, uint64_t now) noexcept nogil
    cdef bint has_news(self) noexcept nogil
    cdef tell(self)

cdef void one_cpu(CpuMask* mask, int cpu) noexcept nogil
