"""How long what waits in the backlog is expected to run.

All atomics are relaxed: each is an estimate by itself, and nothing is read through it.
"""

cimport cython
from deepsched.runtime.elastic cimport NUM_COUNTERS
from deepsched.runtime.known_short cimport is_known_short
from deepsched.runtime.runner cimport SHORT_RUN_NS
from libcpp.atomic cimport memory_order_relaxed

# A model that has not run yet counts for this much: enough to wake a worker.
cdef uint64_t UNKNOWN_NS = 1_000_000_000


@cython.final
@cython.no_gc_clear  # as Dispatcher
cdef class ExpectedLoad:
    """Of one context. `elastic`: of an elastic one, which is told of it by model; else None."""

    def __cinit__(self, Elastic elastic):
        self.elastic = elastic
        self.is_elastic = elastic is not None

    cdef void add(self, RequestState* request) noexcept nogil:
        """Before it is pushed."""
        request.expected_ns = request.model.typical_ns.load(memory_order_relaxed) or UNKNOWN_NS
        self.ns.fetch_add(request.expected_ns, memory_order_relaxed)
        if request.expected_ns >= SHORT_RUN_NS:
            self.num_long.fetch_add(1, memory_order_relaxed)
        request.may_be_long = not is_known_short(request.model.short_classes, request.inputs_key)
        if request.may_be_long:
            self.num_unknown.fetch_add(1, memory_order_relaxed)
        if self.is_elastic:
            self.elastic.num_queued[request.model.number % NUM_COUNTERS].fetch_add(
                1, memory_order_relaxed
            )

    cdef void subtract(self, RequestState* request) noexcept nogil:
        """After it has been popped, or has not been accepted."""
        self.ns.fetch_sub(request.expected_ns, memory_order_relaxed)
        if request.expected_ns >= SHORT_RUN_NS:
            self.num_long.fetch_sub(1, memory_order_relaxed)
        if request.may_be_long:
            self.num_unknown.fetch_sub(1, memory_order_relaxed)
        if self.is_elastic:
            self.elastic.num_queued[request.model.number % NUM_COUNTERS].fetch_sub(
                1, memory_order_relaxed
            )
