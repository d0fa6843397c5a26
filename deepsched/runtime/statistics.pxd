from deepsched.runtime.histogram cimport Histogram
from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic

cdef struct GroupStats:
    # What one model's requests did on one core group. Written by the group's owner only.
    Histogram waiting
    Histogram running
    atomic[uint64_t] num_done
    atomic[uint64_t] num_failed
    atomic[uint64_t] num_expired
    atomic[uint64_t] num_cancelled
    atomic[uint64_t] num_inline

cdef struct UnrunStats:
    # Requests that ended without a run; written by anyone.
    atomic[uint64_t] num_expired
    atomic[uint64_t] num_cancelled
    atomic[uint64_t] num_rejected

cdef tuple snapshot_group(GroupStats* stats)
cdef tuple snapshot_unrun(UnrunStats* stats)
