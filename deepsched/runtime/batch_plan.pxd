from deepsched.runtime.ort cimport OrtAllocator
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    MAX_BATCH = 256  # items in a run
    NUM_FACTORS = 9  # powers of two up to MAX_BATCH

cdef enum WhyOff:
    IS_ON
    OUTPUTS_DIFFER  # an output does not have an item for each of the batch
    BATCHES_FAIL  # again and again, and none of their requests does by itself

cdef struct BatchPlan:
    # How requests of one model run together. Complete before it is published, and kept until the
    # model is gone.
    OrtAllocator** allocators  # by core group, of its session's arena
    size_t num_inputs
    uint32_t most  # items in a run
    uint64_t item_size  # elements of an item's inputs, as it was measured; 0: whatever its size
    double run_ns[MAX_BATCH + 1]  # of a run, by its items; as it was measured
    atomic[double] factor[NUM_FACTORS]  # what runs of 1, 2 to 3, 4 to 7 ... units have shown of it
    atomic[double] request_cost  # of a request in its run, in runs of one, lately
    atomic[double] likeness  # the share of those that wait that may run with the one before, lately
    atomic[uint32_t] why_off
    atomic[uint32_t] num_needless  # failures in a row that were the batch's and no request's

ctypedef BatchPlan* BatchPlanPointer

cdef BatchPlan* new_plan(
    list sessions, list sizes, list run_ns, uint64_t item_size
) except NULL
cdef void follow(BatchPlan* plan, BatchPlan* before) noexcept
cdef void release_allocators(BatchPlan* plan) noexcept
cdef void free_plan(BatchPlan* plan) noexcept
cdef uint32_t most_together(BatchPlan* plan) noexcept nogil
cdef uint32_t units_of(BatchPlan* plan, uint64_t num_items, uint64_t item_size) noexcept nogil
cdef double cost_of(BatchPlan* plan, uint32_t num_items, uint32_t num_units) noexcept nogil
cdef double expected_ns(BatchPlan* plan, uint32_t num_units) noexcept nogil
cdef void learn_together(BatchPlan* plan, uint32_t num_units, uint64_t length_ns) noexcept nogil
cdef void learn_cost(BatchPlan* plan, double cost, uint32_t num_requests) noexcept nogil
cdef void learn_likeness(BatchPlan* plan, bint are_alike) noexcept nogil
cdef bint often_alike(BatchPlan* plan) noexcept nogil
cdef void note_failure(BatchPlan* plan, bint is_needless) noexcept nogil
cdef str failure_of(BatchPlan* plan)
