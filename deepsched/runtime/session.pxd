from deepsched.runtime.ort cimport CountFn, NameFn, OrtSession, ThreadBodyFn, TypeInfoFn
from deepsched.runtime.posix cimport pthread_t
from libc.stdint cimport uint32_t
from libcpp.atomic cimport atomic

cdef struct OpThread:  # one thread of a team
    pthread_t thread
    atomic[uint32_t] order
    ThreadBodyFn body
    void* argument
    uint32_t generation

cdef struct ThreadTeam:
    # The threads that work for ORT on one stream. ORT takes them one after another, on the thread
    # that creates the session.
    int* cpus  # where each thread of the team runs, the caller of Run first; NULL for anywhere
    char prefix[16]
    OpThread** threads  # without the caller of Run
    int num_started
    int num_taken  # by ORT; the others end once the session is there

cdef class Session:
    cdef OrtSession* handle
    cdef ThreadTeam team
    cdef uint32_t generation
    cdef readonly object reserved_bytes

    cdef close(self)
    cdef reserve(self)
    cdef list _describe(
        self, CountFn get_count, NameFn get_name, TypeInfoFn get_type, bint has_default
    )
