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

cdef class WorkerPool:
    cdef Worker* workers
    cdef readonly int num_workers
    cdef int num_started
    cdef uint32_t generation

    cdef void wake(self, int group) noexcept nogil
    cdef start(self, ServeFn serve, void* server, CpuMask* masks, str prefix)
    cdef stop(self)

cdef uint32_t fork_generation() noexcept nogil
cdef void one_cpu(CpuMask* mask, int cpu) noexcept nogil
cdef bytes thread_name(str name)
