"""What became of each request, for as long as somebody wants to know. README.md, "Tracing"."""

cimport cython
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.posix cimport sched_yield
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport (
    memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

from deepsched.errors import OptionError


@cython.final
cdef class Tracer:
    """Collects an entry for each request that ends between `start` and `stop`.

    Its owner sees to it that no two threads are in these at once.
    """

    def __cinit__(self):
        self.generation = fork_generation()

    def __dealloc__(self):
        # Whoever could write keeps the dispatcher, which keeps us.
        free(self.state.buffer.load(memory_order_relaxed))

    def start(self, size_t capacity) -> None:
        """Keeps the first `capacity` entries.

        Raises:
            OptionError: it has been started already.
        """
        cdef TraceBuffer* buffer
        if is_on(&self.state):
            raise OptionError("this context is being traced already; one trace at a time")
        # Pages that are not written to take no memory.
        buffer = <TraceBuffer*>calloc(1, sizeof(TraceBuffer) + capacity * sizeof(TraceEntry))
        if buffer == NULL:
            raise MemoryError(f"no memory for a trace of {capacity} requests")
        buffer.capacity = capacity
        # Also releases: publishes the capacity, pairs with note().
        self.state.buffer.store(buffer, memory_order_seq_cst)

    def stop(self) -> tuple:
        """([(model, group, stage, by_worker, submitted_ns, started_ns, ended_ns), ...], how many
        more there were), in the order in which they ended. Nothing in a forked child."""
        cdef TraceBuffer* buffer = self.state.buffer.exchange(NULL, memory_order_seq_cst)
        cdef TraceEntry* entry
        cdef size_t i, num_taken, num_kept
        if self.generation != fork_generation():
            # The parent's writers will never come to their end here: let it leak.
            return [], 0
        # Also acquires: pairs with the release of the last writer. A writer never waits for anything.
        while self.state.num_writers.load(memory_order_seq_cst):
            with nogil:
                sched_yield()
        num_taken = buffer.num_taken.load(memory_order_relaxed)  # relaxed: nobody writes any more
        num_kept = min(num_taken, buffer.capacity)
        try:
            found = []
            for i in range(num_kept):
                entry = &entries_of(buffer)[i]
                found.append((
                    entry.model, entry.group, entry.stage, bool(entry.by_worker),
                    entry.submitted_ns, entry.started_ns, entry.ended_ns,
                ))
        finally:
            free(buffer)
        return found, num_taken - num_kept


cdef inline TraceEntry* entries_of(TraceBuffer* buffer) noexcept nogil:
    return <TraceEntry*>(buffer + 1)


cdef void note(TraceState* trace, TraceEntry entry) noexcept nogil:
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
