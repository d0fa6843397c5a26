from deepsched.runtime.histogram cimport Histogram
from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic

from deepsched.runtime.batch_plan cimport MAX_BATCH

cdef struct GroupStats:
    # What one model's requests did on one core group. Written by the group's owner only.
    Histogram waiting
    Histogram running
    atomic[uint64_t] num_done
    atomic[uint64_t] num_failed
    atomic[uint64_t] num_expired
    atomic[uint64_t] num_cancelled
    atomic[uint64_t] num_inline
    atomic[uint64_t] busy_ns  # in runs
    atomic[uint64_t] num_batches[MAX_BATCH + 1]  # runs of several requests, by how many these were

cdef struct UnrunStats:
    # Requests that ended without a run; written by anyone.
    atomic[uint64_t] num_expired
    atomic[uint64_t] num_cancelled
    atomic[uint64_t] num_rejected

cdef tuple snapshot_group(GroupStats* stats)
cdef tuple snapshot_unrun(UnrunStats* stats)
