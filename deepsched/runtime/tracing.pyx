"""Tracer: records how each request ended, while a trace is on. README.md, "Tracing"."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.posix cimport sched_yield
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport (
    memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

import numpy as np

from deepsched.errors import OptionError


@cython.final
cdef class Tracer:
    """Collects an entry for each request that ends between `start` and `stop`.

    One trace at a time, from its start until its stop is over. They take no lock, since the garbage
    collector may end an abandoned trace at any moment.
    """

    def __cinit__(self):
        self.generation = fork_generation()

    def __dealloc__(self):
        # Whoever could write keeps the dispatcher, which keeps us.
        free(self.state.buffer.load(memory_order_relaxed))

    def start(self, size_t capacity, owner) -> None:
        """Keeps the first `capacity` entries, for `owner`, who stops it.

        Raises:
            OptionError: it has been started already.
        """
        cdef TraceBuffer* buffer
        cdef bint is_free
        # Pages that are not written to take no memory.
        buffer = <TraceBuffer*>calloc(1, sizeof(TraceBuffer) + capacity * sizeof(TraceEntry))
        if buffer == NULL:
            raise MemoryError(f"no memory for a trace of {capacity} requests")
        buffer.capacity = capacity
        with cython.critical_section(self):
            is_free = self.owner is None
            if is_free:
                self.owner = owner
        if not is_free:
            free(buffer)
            raise OptionError("this context is being traced already; one trace at a time")
        # Also releases: publishes the capacity, pairs with record_entry().
        self.state.buffer.store(buffer, memory_order_seq_cst)

    def stop(self, owner) -> tuple:
        """(the entries as the bytes of ENTRY, in the order in which they ended; how many more there
        were). Nothing in a forked child, or if what is under way is not the trace of `owner`."""
        cdef TraceBuffer* buffer
        cdef size_t num_taken, num_kept
        cdef bint is_own
        with cython.critical_section(self):
            is_own = self.owner is owner
        if not is_own or self.generation != fork_generation():
            # In a child the parent's writers never come to their end: let it leak.
            return b"", 0
        buffer = self.state.buffer.exchange(NULL, memory_order_seq_cst)
        # Also acquires: pairs with the release of the last writer. A writer never waits for anything,
        # and none is added: until we are done, nobody starts.
        while self.state.num_writers.load(memory_order_seq_cst):
            with nogil:
                sched_yield()
        num_taken = buffer.num_taken.load(memory_order_relaxed)  # relaxed: nobody writes any more
        num_kept = min(num_taken, buffer.capacity)
        try:
            return (
                PyBytes_FromStringAndSize(<char*>entries_of(buffer), num_kept * sizeof(TraceEntry)),
                num_taken - num_kept,
            )
        finally:
            free(buffer)
            with cython.critical_section(self):
                self.owner = None


ENTRY = np.dtype([
    ("submitted_ns", np.uint64), ("started_ns", np.uint64), ("ended_ns", np.uint64),
    ("model", np.uint32), ("group", np.int32), ("stage", np.uint32), ("by_worker", np.int32),
    ("num_together", np.uint32),
], align=True)
assert ENTRY.itemsize == sizeof(TraceEntry)


cdef inline TraceEntry* entries_of(TraceBuffer* buffer) noexcept nogil:
    return <TraceEntry*>(buffer + 1)


cdef void record_entry(TraceState* trace, TraceEntry entry) noexcept nogil:
    """Adds an entry, if there is room. Never blocks."""
    cdef TraceBuffer* buffer
    cdef size_t place
    # seq_cst, both, and in stop(): either we see that it has stopped, or stop() sees us.
    trace.num_writers.fetch_add(1, memory_order_seq_cst)
    buffer = trace.buffer.load(memory_order_seq_cst)
    if buffer != NULL:
        # relaxed: only the place counts; `num_writers` publishes what is written there.
        place = buffer.num_taken.fetch_add(1, memory_order_relaxed)
        if place < buffer.capacity:
            entries_of(buffer)[place] = entry
    trace.num_writers.fetch_sub(1, memory_order_release)  # release: pairs with stop()
