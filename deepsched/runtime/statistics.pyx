"""Counters that are always on: outcomes, and the times that requests waited and ran."""

from deepsched.runtime.histogram cimport snapshot
from libcpp.atomic cimport memory_order_relaxed

# All loads are relaxed: statistics, nothing is read through them.


cdef tuple snapshot_group(GroupStats* stats):
    """(done, failed, expired, cancelled, inline, waiting, running, busy ns, batches).

    `batches`: by the number of requests that a run served, from 0 on; without what nothing follows.
    """
    batches = [
        stats.num_batches[i].load(memory_order_relaxed) for i in range(MAX_BATCH + 1)
    ]
    while batches and not batches[-1]:
        batches.pop()
    return (
        stats.num_done.load(memory_order_relaxed),
        stats.num_failed.load(memory_order_relaxed),
        stats.num_expired.load(memory_order_relaxed),
        stats.num_cancelled.load(memory_order_relaxed),
        stats.num_inline.load(memory_order_relaxed),
        snapshot(&stats.waiting),
        snapshot(&stats.running),
        stats.busy_ns.load(memory_order_relaxed),
        tuple(batches),
    )


cdef tuple snapshot_unrun(UnrunStats* stats):
    """(expired, cancelled, rejected)."""
    return (
        stats.num_expired.load(memory_order_relaxed),
        stats.num_cancelled.load(memory_order_relaxed),
        stats.num_rejected.load(memory_order_relaxed),
    )
