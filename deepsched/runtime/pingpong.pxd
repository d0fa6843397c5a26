from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    PING_PONG_ALIGNMENT = 128  # see below

cdef struct PingPong:
    # One writer each. 128 bytes, not 64: Intel's prefetcher fetches lines in aligned pairs, and some
    # cores of aarch64 have lines of 128. All zero is a valid beginning.
    atomic[uint64_t] ball  # odd: a throw that is to be answered; even: the game is over
    char _pad_ball[120]
    atomic[uint64_t] echo  # the last throw that was answered
    char _pad_echo[120]

cdef uint64_t ping(PingPong* lines, int num_rounds, uint64_t patience_ns) noexcept nogil
cdef bint pong(PingPong* lines, uint64_t patience_ns) noexcept nogil

cdef class PingPongTable:
    cdef PingPong* lines
