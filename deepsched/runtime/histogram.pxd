"""Latencies counted in buckets whose width grows with the value: 3 % wide, from 1 ns to an hour.

As in HdrHistogram: 32 buckets to each power of two. Recording is one add to one counter.
"""

from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic, memory_order_relaxed

cdef extern from * nogil:
    """
    static inline int deepsched_highest_bit(unsigned long long value) {
        return 63 - __builtin_clzll(value);
    }
    """
    int highest_bit "deepsched_highest_bit"(unsigned long long value) noexcept

cdef enum:
    SUB_BITS = 5
    MAX_BITS = 42  # 2 ** 42 ns are 73 minutes; longer ones count as that
    NUM_BUCKETS = (MAX_BITS - SUB_BITS + 1) << SUB_BITS

cdef struct Histogram:
    atomic[uint64_t] counts[NUM_BUCKETS]
    atomic[uint64_t] total_ns
    atomic[uint64_t] longest_ns

cdef inline int bucket_of(uint64_t value) noexcept nogil:
    cdef int bits
    if value < (1 << SUB_BITS):
        return <int>value
    bits = highest_bit(value)
    if bits >= MAX_BITS:
        return NUM_BUCKETS - 1
    # The leading one and the SUB_BITS bits after it.
    return <int>(((bits - SUB_BITS) << SUB_BITS) + (value >> (bits - SUB_BITS)))

cdef inline void add_one(atomic[uint64_t]* counter, uint64_t amount) noexcept nogil:
    # relaxed, and no locked instruction: one thread writes at a time (a core group's owner),
    # readers see some recent value.
    counter.store(counter.load(memory_order_relaxed) + amount, memory_order_relaxed)

cdef inline void record(Histogram* histogram, uint64_t value_ns) noexcept nogil:
    add_one(&histogram.counts[bucket_of(value_ns)], 1)
    add_one(&histogram.total_ns, value_ns)
    if value_ns > histogram.longest_ns.load(memory_order_relaxed):
        histogram.longest_ns.store(value_ns, memory_order_relaxed)

cdef tuple snapshot(Histogram* histogram)
