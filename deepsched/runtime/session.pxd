from deepsched.runtime.ort cimport OrtSession
from libc.stdint cimport uint32_t

cdef struct ThreadTeam:
    # What a session's intra-op threads are started with. ORT starts them one after another, from
    # the thread that creates the session.
    int* cpus  # where each thread of the team runs, the caller of Run first; NULL for anywhere
    char prefix[16]
    int num_started

cdef class Session:
    cdef OrtSession* handle
    cdef ThreadTeam team
    cdef uint32_t generation

    cdef close(self)
    cdef list _describe(self, bint inputs)
