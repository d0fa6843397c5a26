from deepsched.runtime.posix cimport CpuMask, pthread_t
from libc.stdint cimport uint32_t
from libcpp.atomic cimport atomic

ctypedef void (*ServeFn)(void* server, int group) noexcept nogil

cdef struct Worker:
    atomic[uint32_t] signal
    int group
    ServeFn serve
    void* server
    pthread_t thread
    CpuMask mask

cdef class WorkerPool:
    cdef Worker* workers
    cdef readonly int num_workers
    cdef int num_started
    cdef uint32_t generation

    cdef void wake(self, int group) noexcept nogil
    cdef start(self, ServeFn serve, void* server, list cpus_by_group, str prefix)
    cdef stop(self)

cdef uint32_t fork_generation() noexcept nogil
cdef fill_mask(CpuMask* mask, cpus)
cdef bytes thread_name(str name)
