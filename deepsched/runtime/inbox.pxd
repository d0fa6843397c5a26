from libc.stdint cimport int64_t, uint32_t
from libcpp.atomic cimport atomic

cdef struct Letter:
    # A part of what is delivered. `owner` is a PyObject*, and the letter holds a reference to it
    # from the moment it is handed to native code until `take`.
    Letter* below
    void* owner

ctypedef Letter* LetterPointer

cdef class Inbox:
    cdef atomic[LetterPointer] newest
    cdef atomic[uint32_t] is_waited_for
    cdef atomic[uint32_t] is_poked
    cdef atomic[uint32_t] num_posting
    cdef readonly int eventfd
    cdef uint32_t generation

    cdef bint post(self, Letter* letter) noexcept nogil
    cdef void ring_and_go(self) noexcept nogil
    cdef void go(self) noexcept nogil
    cdef void ring(self) noexcept nogil
