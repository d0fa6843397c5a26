from deepsched.runtime.pingpong cimport PingPongTable
from deepsched.runtime.policy cimport MAX_LEAVES, PolicyTree, Tree
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef class Distances:
    cdef atomic[uint32_t] num_changes
    cdef int neighbours[MAX_LEAVES]  # with which a leaf makes up a group of two; -1: none
    cdef PingPongTable table
    # Of whoever has taken `due_ns`, and of the two workers of its game.
    cdef atomic[uint64_t] trips_ns[MAX_LEAVES]  # by the lower leaf of a pair; 0: unknown
    cdef uint64_t doubtful_ns[MAX_LEAVES]  # another distance that was seen once; 0: none
    cdef char _pad0[64]
    cdef atomic[uint64_t] due_ns  # when the next game may begin; NEVER: one is under way
    cdef atomic[int] pinger  # the leaves whose workers are to play; -1: none
    cdef atomic[int] ponger

    cdef bint is_due(self, uint64_t now) noexcept nogil
    cdef bint begin(self, int leaf) noexcept nogil
    cdef void appoint(self, int leaf) noexcept nogil
    cdef void give_up(self, uint64_t now) noexcept nogil
    cdef void play(self, int leaf) noexcept nogil
    cdef bint learn(self, int leaf, uint64_t trip_ns) noexcept nogil
