from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    NUM_CLASSES = 64

cdef struct InputClass:
    atomic[uint64_t] key  # the class of inputs that was seen to run short last; 0: none

cdef inline uint64_t mixed(uint64_t hash, uint64_t number) noexcept nogil:
    # The factor is odd, and random otherwise.
    return (hash ^ (hash >> 29) ^ number) * <uint64_t>0xFF51AFD7ED558CCDu

cdef uint64_t key_of(list inputs) except? 0
cdef bint is_known_short(InputClass* classes, uint64_t key) noexcept nogil
cdef void note_class(InputClass* classes, uint64_t key, bint is_short) noexcept nogil
cdef void learn_class(
    InputClass* classes, uint64_t key, uint64_t length_ns, int num_streams
) noexcept nogil
