"""How many items a model's requests may run together in, and how long that takes.

README.md, "Batching". All atomics are relaxed: each is an estimate or a flag by itself, and an update
that is lost to another thread does no harm.
"""

from deepsched.runtime.histogram cimport highest_bit
from deepsched.runtime.library cimport check, library, loaded_library
from deepsched.runtime.ort cimport OrtAllocator
from deepsched.runtime.session cimport Session
from deepsched.runtime.values cimport ValueInfo
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_relaxed

# So many batches in a row that fail though each of their requests succeeds: the form is to blame.
cdef uint32_t MAX_NEEDLESS = 3

# Below this likeness runs have 4/3 of a request on average, at most.
cdef double LEAST_LIKENESS = 0.25

# How far one that waits moves the likeness, and one that nobody waits behind: where few wait, as in a
# crowd that takes turns, others are let into the queue now and then to be looked at.
cdef double SEEN = 1.0 / 64
cdef double UNSEEN = 1.0 / 16384

cdef dict _REASONS = {
    OUTPUTS_DIFFER: "an output did not have an item for each of the batch",
    BATCHES_FAIL: "batches failed, and their requests by themselves did not",
}


cdef BatchPlan* new_plan(
    list sessions, list sizes, list run_ns, uint64_t item_size
) except NULL:
    """See Model.set_batching; raises ValueError."""
    cdef BatchPlan* plan
    cdef Session session
    cdef ValueInfo info
    cdef size_t group, num_sessions = len(sessions)
    cdef int i
    if (
        len(sizes) < 2 or len(sizes) != len(run_ns) or sizes[0] != 1 or sizes[-1] > MAX_BATCH
        or any(low >= high for low, high in zip(sizes, sizes[1:]))
        or not all(ns > 0 for ns in run_ns)
    ):
        raise ValueError(
            f"expected ascending sizes from 1 to {MAX_BATCH} at most, and a run length in ns for each; "
            f"got {sizes} and {run_ns}"
        )
    for info in sessions[0].describe_inputs() + sessions[0].describe_outputs():
        # Strings and elements of less than a byte cannot be joined by copying bytes.
        if not info.borrows or not info.shape or isinstance(info.shape[0], int):
            raise ValueError(f"requests cannot run together: {info!r} has no open first dimension")
    plan = <BatchPlan*>calloc(1, sizeof(BatchPlan))
    if plan == NULL:
        raise MemoryError("no memory for a model's batches")
    try:
        plan.allocators = <OrtAllocator**>calloc(num_sessions + 1, sizeof(OrtAllocator*))
        if plan.allocators == NULL:
            raise MemoryError("no memory for a model's batches")
        for group, session in enumerate(sessions):
            check(library().api.CreateAllocator(
                session.handle, library().cpu_memory, &plan.allocators[group]
            ))
    except BaseException:
        if plan.allocators != NULL:
            release_allocators(plan)
        free_plan(plan)
        raise
    plan.num_inputs = len(sessions[0].describe_inputs())
    plan.most = sizes[-1]
    plan.item_size = item_size
    plan.request_cost.store(1.0, memory_order_relaxed)
    plan.likeness.store(1.0, memory_order_relaxed)
    for i in range(NUM_FACTORS):
        plan.factor[i].store(1.0, memory_order_relaxed)
    for low, high, low_ns, high_ns in zip(sizes, sizes[1:], run_ns, run_ns[1:]):
        for i in range(low, high + 1):
            plan.run_ns[i] = low_ns + (high_ns - low_ns) * (i - low) / (high - low)
    return plan


cdef void follow(BatchPlan* plan, BatchPlan* before) noexcept:
    """Off, if the plan that this one takes the place of is. NULL is allowed for that."""
    if before != NULL:
        plan.why_off.store(before.why_off.load(memory_order_relaxed), memory_order_relaxed)


cdef void release_allocators(BatchPlan* plan) noexcept:
    """Before its sessions are closed."""
    cdef size_t group = 0
    if plan == NULL:
        return
    while plan.allocators[group] != NULL:
        loaded_library().api.ReleaseAllocator(plan.allocators[group])
        plan.allocators[group] = NULL
        group += 1


cdef void free_plan(BatchPlan* plan) noexcept:
    if plan == NULL:
        return
    free(plan.allocators)
    free(plan)


cdef uint32_t most_together(BatchPlan* plan) noexcept nogil:
    """Most items in a run; 1: a model's requests run by themselves. NULL is allowed."""
    if plan == NULL or plan.why_off.load(memory_order_relaxed) != IS_ON:
        return 1
    return plan.most


cdef uint32_t units_of(BatchPlan* plan, uint64_t num_items, uint64_t item_size) noexcept nogil:
    """What so many items count for in a run, where each has `item_size` elements: as many as were
    measured of that size together. More than MAX_BATCH if they are too large for any run."""
    cdef uint64_t num_units = num_items
    if 0 < plan.item_size < item_size:
        num_units = (num_items * item_size + plan.item_size - 1) // plan.item_size
    return <uint32_t>min(num_units, <uint64_t>(MAX_BATCH + 1))


cdef double cost_of(BatchPlan* plan, uint32_t num_items, uint32_t num_units) noexcept nogil:
    """What a run of so many items, which count for so many units, costs in runs of one of them; as
    it was measured."""
    return plan.run_ns[num_units] / plan.run_ns[num_units // num_items]


cdef double expected_ns(BatchPlan* plan, uint32_t num_units) noexcept nogil:
    """How long a run of so many units takes on one stream."""
    return plan.run_ns[num_units] * (
        plan.factor[highest_bit(num_units)].load(memory_order_relaxed)
    )


cdef void learn_together(BatchPlan* plan, uint32_t num_units, uint64_t length_ns) noexcept nogil:
    """A run of so many units has taken so long on one stream."""
    cdef atomic[double]* factor = &plan.factor[highest_bit(num_units)]
    cdef double known = factor.load(memory_order_relaxed)
    cdef double seen = <double>length_ns / plan.run_ns[num_units]
    # As for runs of one: none counts for more than twice what was expected.
    factor.store(known + (min(seen, 2 * known) - known) / 8, memory_order_relaxed)


cdef void learn_cost(BatchPlan* plan, double cost, uint32_t num_requests) noexcept nogil:
    """A run that costs as much as `cost` of one has served so many requests."""
    cdef double known = plan.request_cost.load(memory_order_relaxed)
    cdef double gain = <double>num_requests / (num_requests + 16)
    plan.request_cost.store(known + gain * (cost / num_requests - known), memory_order_relaxed)
    if num_requests > 1:
        plan.num_needless.store(0, memory_order_relaxed)
    else:
        move_likeness(plan, 1.0, UNSEEN)


cdef void learn_likeness(BatchPlan* plan, bint are_alike) noexcept nogil:
    """A request has been popped, and the next in the line may run with it, or may not."""
    move_likeness(plan, 1.0 if are_alike else 0.0, SEEN)


cdef void move_likeness(BatchPlan* plan, double towards, double gain) noexcept nogil:
    cdef double known = plan.likeness.load(memory_order_relaxed)
    plan.likeness.store(known + gain * (towards - known), memory_order_relaxed)


cdef bint often_alike(BatchPlan* plan) noexcept nogil:
    """Whether a crowd's requests find others to run with. NULL is allowed."""
    return most_together(plan) > 1 and (
        plan.likeness.load(memory_order_relaxed) > LEAST_LIKENESS
    )


cdef void note_failure(BatchPlan* plan, bint is_needless) noexcept nogil:
    """A batch has failed. `is_needless`: each of its requests succeeded after that."""
    if not is_needless:
        plan.num_needless.store(0, memory_order_relaxed)
    elif plan.num_needless.fetch_add(1, memory_order_relaxed) + 1 >= MAX_NEEDLESS:
        plan.why_off.store(BATCHES_FAIL, memory_order_relaxed)


cdef str failure_of(BatchPlan* plan):
    return _REASONS.get(plan.why_off.load(memory_order_relaxed))
