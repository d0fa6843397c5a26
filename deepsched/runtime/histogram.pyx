"""Reading histograms from Python; recording is inline, in the .pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_relaxed

# The widest that a bucket is, relative to its values.
RELATIVE_WIDTH = 1.0 / (1 << SUB_BITS)


cdef tuple snapshot(Histogram* histogram):
    """(counts as native uint64 in bytes, total in ns, longest in ns)."""
    cdef bytes counts = PyBytes_FromStringAndSize(NULL, NUM_BUCKETS * sizeof(uint64_t))
    cdef uint64_t* out = <uint64_t*>PyBytes_AS_STRING(counts)
    cdef int i
    for i in range(NUM_BUCKETS):
        out[i] = histogram.counts[i].load(memory_order_relaxed)
    return (
        counts,
        histogram.total_ns.load(memory_order_relaxed),
        histogram.longest_ns.load(memory_order_relaxed),
    )


def bucket_index(uint64_t value_ns) -> int:
    """The bucket that counts `value_ns`.

    >>> bucket_index(0), bucket_index(31), bucket_index(64), bucket_index(65)
    (0, 31, 64, 64)
    """
    return bucket_of(value_ns)


def bucket_bounds() -> list[tuple[int, int]]:
    """Of each bucket, the smallest value and the one above the largest, in ns.

    >>> bucket_bounds()[0], bucket_bounds()[64]
    ((0, 1), (64, 66))
    """
    bounds = []
    for index in range(NUM_BUCKETS):
        octave = max((index >> SUB_BITS) - 1, 0)
        low = (index - (octave << SUB_BITS)) << octave
        bounds.append((low, low + (1 << octave)))
    return bounds
