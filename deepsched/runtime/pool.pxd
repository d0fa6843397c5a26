from deepsched.runtime.posix cimport CpuMask, pthread_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

# Serves, gives the group up, and returns how long to look for another grant before sleeping, ns;
# or, negative, after how long to call RetryFn, if there has been no grant.
ctypedef int64_t (*ServeFn)(void* server, int group) noexcept nogil
ctypedef void (*RetryFn)(void* server) noexcept nogil

cdef struct WorkerPoolState:
    atomic[uint64_t] wake_ns  # smoothed: from wake() until the worker runs

cdef struct Worker:
    atomic[uint32_t] signal
    int group
    uint64_t granted_ns  # when it was woken from its sleep, else 0; published by `signal`
    WorkerPoolState* pool
    ServeFn serve
    RetryFn retry
    void* server
    pthread_t thread
    char _pad[64]  # a cache line between two workers' words, wherever the array begins

cdef class WorkerPool:
    cdef Worker* workers
    cdef WorkerPoolState state
    cdef readonly int num_workers
    cdef int num_started
    cdef uint32_t generation

    cdef void wake(self, int group) noexcept nogil
    cdef size_t num_waking(self) noexcept nogil
    cdef uint64_t wake_ns(self) noexcept nogil
    cdef start(self, ServeFn serve, RetryFn retry, void* server, CpuMask* masks, str prefix)
    cdef stop(self)

cdef uint32_t fork_generation() noexcept nogil
cdef bytes thread_name(str name)
