"""Several requests as one run: which may go together, their inputs joined, the outputs split.

README.md, "Batching".
"""

from deepsched.runtime.backlog cimport Backlog
from deepsched.runtime.batch_plan cimport BatchPlan, expected_ns, most_together, units_of
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.known_short cimport mixed
from deepsched.runtime.library cimport loaded_library
from deepsched.runtime.ort cimport OrtApi, OrtRunOptions, OrtStatus, OrtValue
from deepsched.runtime.queue cimport Head, Tag
from deepsched.runtime.request cimport NO_DEADLINE, RequestState
from deepsched.runtime.values cimport MAX_RANK
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed

# A key is a hash above the number of units, which is less than that.
cdef uint64_t UNITS = 0xFFFF

# Run lengths are means: a run may take this much longer than expected.
cdef double MARGIN = 1.25

cdef struct Shape:
    # Of a tensor, as ORT has it.
    int element_type
    const int64_t* dims
    size_t rank


cdef bint read_shape(OrtValue* value, Shape* shape) noexcept nogil:
    """False: it is no tensor."""
    cdef OrtStatus* status = (
        loaded_library().api.GetTensorElementTypeAndShapeDataReference(
            value, &shape.element_type, &shape.dims, &shape.rank
        )
    )
    if status == NULL:
        return True
    loaded_library().api.ReleaseStatus(status)
    return False


# --- Which may run together ---------------------------------------------------------------------


cdef Tag tag_of(RequestState* request) noexcept nogil:
    """What the backlog is to know of a request."""
    cdef BatchPlan* plan = request.model.plan.load(memory_order_acquire)  # pairs with set_batching
    cdef uint64_t key, size, item_size = 0
    cdef uint32_t num_units
    cdef Tag tag
    cdef Shape shape
    cdef size_t i, axis
    cdef int64_t num_items = 0
    tag.key = 0
    tag.deadline_ns = request.deadline_ns
    # A request that gives memory back runs by itself.
    if request.shrinks or most_together(plan) == 1:
        return tag
    if request.num_inputs != plan.num_inputs or request.input_names != request.model.input_names:
        return tag  # it replaces a default, or leaves one input out before it
    key = request.model.number
    for i in range(request.num_inputs):
        if not read_shape(request.inputs[i], &shape) or not shape.rank:
            return tag
        if i == 0:
            num_items = shape.dims[0]
        if shape.dims[0] != num_items:
            return tag
        key = mixed(key, shape.rank)
        size = 1
        for axis in range(1, shape.rank):
            key = mixed(key, <uint64_t>shape.dims[axis])
            size *= <uint64_t>shape.dims[axis]
        item_size += size
    num_units = units_of(plan, <uint64_t>num_items, item_size)
    if 0 < num_units <= plan.most:
        request.num_items = <uint32_t>num_items
        request.num_units = num_units
        tag.key = (key & ~UNITS) | num_units
    return tag


cdef bint fits(RequestState* first, RequestState* mate) noexcept nogil:
    """Whether they may run together: keys are hashes."""
    cdef Shape one, other
    cdef size_t i, axis
    if first.model != mate.model:
        return False
    for i in range(first.num_inputs):
        if not read_shape(first.inputs[i], &one) or not read_shape(mate.inputs[i], &other):
            return False
        if one.rank != other.rank or one.element_type != other.element_type:
            return False
        for axis in range(1, one.rank):
            if one.dims[axis] != other.dims[axis]:
                return False
    return True


cdef void begin_batch(Batch* batch, RequestState* first) noexcept nogil:
    batch.first = batch.last = first
    batch.num_requests = 1
    batch.num_parts = first.num_parts
    batch.num_items = first.num_items
    batch.num_units = first.num_units
    batch.deadline_ns = first.deadline_ns
    batch.is_mixed = False


cdef bint goes_with(Batch* batch, Tag* tag, uint32_t most) noexcept nogil:
    """Whether a request with this tag may run with the batch, in `most` units, as far as keys tell."""
    cdef uint64_t key = batch.first.batch_key
    return (
        key != 0 and tag.key != 0 and not (tag.key ^ key) & ~UNITS
        and batch.num_units + <uint32_t>(tag.key & UNITS) <= most
    )


cdef RequestState* pop_mate(
    Backlog backlog, Batch* batch, BatchPlan* plan, uint32_t most
) noexcept nogil:
    """Pops the request at the head of the batch's class, if it may run with the batch; else NULL.

    `most`: units that the run may have.
    """
    cdef Head head
    cdef RequestState* mate = NULL
    cdef uint32_t num_units
    cdef uint64_t earliest, now
    while backlog.peek(batch.first.priority, &head):
        if not goes_with(batch, &head.tag, most):
            return NULL
        num_units = batch.num_units + <uint32_t>(head.tag.key & UNITS)
        earliest = min(batch.deadline_ns, head.tag.deadline_ns)
        if earliest != NO_DEADLINE:
            now = now_ns()
            if (
                now + <uint64_t>(MARGIN * expected_ns(plan, num_units)) > earliest
                and now < head.tag.deadline_ns  # else it is late already, and ends without a run
            ):
                return NULL
        if backlog.try_pop_at(batch.first.priority, head.position, <void**>&mate):
            return mate
    return NULL


cdef void add_mate(Batch* batch, RequestState* mate) noexcept nogil:
    """Adds a request that has begun."""
    batch.is_mixed = batch.is_mixed or not fits(batch.first, mate)
    batch.last.next_mate = mate
    batch.last = mate
    batch.num_requests += 1
    batch.num_parts += mate.num_parts
    batch.num_items += mate.num_items
    batch.num_units += mate.num_units
    batch.deadline_ns = min(batch.deadline_ns, mate.deadline_ns)


# --- The run ------------------------------------------------------------------------------------


cdef OrtStatus* run_joined(
    Joined* joined, Batch* batch, BatchPlan* plan, int group, OrtRunOptions* options
) noexcept nogil:
    """One run for all of the batch. `release_joined` is to follow, whatever comes of it."""
    cdef RequestState* first = batch.first
    cdef OrtStatus* status = NULL
    cdef size_t i
    for i in range(first.num_inputs):
        joined.inputs[i] = NULL
    for i in range(first.model.num_outputs):
        joined.outputs[i] = NULL
    for i in range(first.num_inputs):
        status = join_input(&joined.inputs[i], batch, plan, group, i)
        if status != NULL:
            return status
    return loaded_library().api.Run(
        first.model.sessions[group], options, first.input_names, joined.inputs, first.num_inputs,
        first.model.output_names, first.model.num_outputs, joined.outputs,
    )


cdef OrtStatus* join_input(
    OrtValue** out, Batch* batch, BatchPlan* plan, int group, size_t i
) noexcept nogil:
    """The members' values of one input behind each other, in memory of the session's arena: that is
    where the group's cores are, and goes when memory is given back."""
    cdef const OrtApi* api = loaded_library().api
    cdef RequestState* member = batch.first
    cdef OrtStatus* status
    cdef Shape shape
    cdef int64_t dims[MAX_RANK]
    cdef void* source = NULL
    cdef void* target = NULL
    cdef size_t num_bytes = 0, item_bytes
    read_shape(member.inputs[i], &shape)  # did so before
    memcpy(dims, shape.dims, shape.rank * sizeof(int64_t))
    dims[0] = batch.num_items
    status = api.CreateTensorAsOrtValue(
        plan.allocators[group], dims, shape.rank, shape.element_type, out
    )
    if status == NULL:
        status = api.GetTensorMutableData(out[0], &target)
    if status == NULL:
        status = api.GetTensorSizeInBytes(out[0], &num_bytes)
    item_bytes = num_bytes // batch.num_items
    while status == NULL and member != NULL:
        num_bytes = item_bytes * member.num_items
        status = api.GetTensorMutableData(member.inputs[i], &source)
        if status == NULL and num_bytes:
            memcpy(target, source, num_bytes)
            target = <char*>target + num_bytes
        member = member.next_mate
    return status


cdef Split split_outputs(Joined* joined, Batch* batch) noexcept nogil:
    """Gives each member that still wants it its part of each output, in memory of its own: a caller
    that keeps its part keeps no other's."""
    cdef size_t i
    cdef Split split = SPLIT
    for i in range(batch.first.model.num_outputs):
        split = split_output(joined.outputs[i], batch, i)
        if split != SPLIT:
            break
    return split


cdef Split check_outputs(RequestState* request) noexcept nogil:
    """The same for a request of several parts that ran by itself: whoever has it cuts its outputs."""
    cdef Shape shape
    cdef size_t i
    for i in range(request.model.num_outputs):
        if not has_items(request.outputs[i], request.num_items, &shape):
            return OUTPUTS_DO_NOT_FIT
    return SPLIT


cdef bint has_items(OrtValue* output, uint32_t num_items, Shape* shape) noexcept nogil:
    """Whether it is a tensor of so many items. Reads its shape."""
    return (
        output != NULL and read_shape(output, shape) and 0 < shape.rank <= MAX_RANK
        and shape.dims[0] == num_items
    )


cdef Split split_output(OrtValue* output, Batch* batch, size_t i) noexcept nogil:
    cdef const OrtApi* api = loaded_library().api
    cdef RequestState* member = batch.first
    cdef OrtStatus* status
    cdef Shape shape
    cdef int64_t dims[MAX_RANK]
    cdef void* source = NULL
    cdef void* target = NULL
    cdef size_t num_bytes = 0, item_bytes
    if not has_items(output, batch.num_items, &shape):
        return OUTPUTS_DO_NOT_FIT
    memcpy(dims, shape.dims, shape.rank * sizeof(int64_t))
    status = api.GetTensorMutableData(output, &source)
    if status == NULL:
        status = api.GetTensorSizeInBytes(output, &num_bytes)
    item_bytes = num_bytes // batch.num_items
    while status == NULL and member != NULL:
        num_bytes = item_bytes * member.num_items
        # relaxed: it has been decided who is dropped; a later stop comes too late.
        if not member.is_dropped:
            dims[0] = member.num_items
            status = api.CreateTensorAsOrtValue(
                loaded_library().allocator, dims, shape.rank, shape.element_type,
                &member.outputs[i],
            )
            if status == NULL and num_bytes:
                status = api.GetTensorMutableData(member.outputs[i], &target)
            if status == NULL and num_bytes:
                memcpy(target, source, num_bytes)
        source = <char*>source + num_bytes
        member = member.next_mate
    if status == NULL:
        return SPLIT
    api.ReleaseStatus(status)
    return NO_MEMORY


cdef void release_joined(Joined* joined, Batch* batch) noexcept nogil:
    cdef const OrtApi* api = loaded_library().api
    cdef size_t i
    for i in range(batch.first.num_inputs):
        if joined.inputs[i] != NULL:
            api.ReleaseValue(joined.inputs[i])
    for i in range(batch.first.model.num_outputs):
        if joined.outputs[i] != NULL:
            api.ReleaseValue(joined.outputs[i])
