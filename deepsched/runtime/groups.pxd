from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic


cdef extern from * nogil:
    """
    static inline int deepsched_lowest_bit(unsigned long long bits) { return __builtin_ctzll(bits); }
    static inline int deepsched_count_bits(unsigned long long bits) {
        return __builtin_popcountll(bits);
    }
    """
    int count_bits "deepsched_count_bits"(unsigned long long bits) noexcept
    int lowest_bit "deepsched_lowest_bit"(unsigned long long bits) noexcept

cdef struct FreeWord:
    atomic[uint64_t] bits
    char _pad[56]  # one cache line a word: far groups do not share one


cdef class CoreGroups:
    cdef FreeWord* words
    cdef readonly int num_groups
    cdef int num_words
    cdef atomic[uint64_t] reserved  # a bit for each of the first 64 groups that nobody may claim

    cdef int claim(self, int preferred) noexcept nogil
    cdef int claim_other_than(self, int avoided) noexcept nogil
    cdef int num_claimed(self) noexcept nogil
    cdef uint64_t free_groups(self) noexcept nogil
    cdef bint claim_all(self, uint64_t groups) noexcept nogil
    cdef bint reserve(self, uint64_t groups) noexcept nogil
    cdef bint claim_reserved(self, uint64_t groups) noexcept nogil
    cdef void unreserve(self) noexcept nogil
    cdef bint any_reserved(self, uint64_t groups) noexcept nogil
    cdef uint64_t allowed(self, int word) noexcept nogil
    cdef void release_all(self, uint64_t groups) noexcept nogil
    cdef void release(self, int group) noexcept nogil
