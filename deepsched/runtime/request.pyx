"""One inference: its inputs, its stages, its outputs or its error.

README.md, "A request's life".
"""

cimport cython
from cpython.list cimport PyList_GetSlice
from deepsched.runtime.completion cimport complete, start_completion
from deepsched.runtime.futex cimport WAKE_ALL, futex_wake, now_ns
from deepsched.runtime.known_short cimport note_class
from deepsched.runtime.library cimport loaded_library, take_message
from deepsched.runtime.ort cimport ORT_INVALID_ARGUMENT, OrtApi, OrtValue
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.tracing cimport TraceEntry, is_on, record_entry
from deepsched.runtime.values cimport ValueInfo, output_from
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport (
    memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_seq_cst,
)

from concurrent.futures import CancelledError

from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, InputError

# What users read of how a request ended, by Stage.
OUTCOMES = {
    DONE: "done", FAILED: "failed", EXPIRED: "expired", CANCELLED: "cancelled", REFUSED: "closed",
}

@cython.final
@cython.freelist(64)
@cython.no_gc  # in no cycle but with its future, which ends when it is taken from its inbox
cdef class Request:
    """Owns everything that native code touches on the request's behalf.

    It must stay alive until it is complete, or never have been queued.
    """

    def __init__(self):
        raise TypeError("requests are made by an engine")

    def __dealloc__(self):
        cdef const OrtApi* api = loaded_library().api
        cdef size_t i
        # A forked child leaks: the parent's threads may have held ORT's allocator locked.
        if self.state.inputs == NULL or self.generation != fork_generation():
            return
        for i in range(self.state.num_inputs):
            api.ReleaseValue(self.state.inputs[i])
        release_outputs(&self.state)
        if self.state.status != NULL:
            api.ReleaseStatus(self.state.status)
        free(self.arrays)

    cpdef list outputs(self):
        """The outputs of a request that has ended, as Python values; or its error. Once."""
        cdef int code = 0
        cdef size_t i
        cdef OrtValue* value
        cdef list outputs
        # relaxed: whoever calls has seen it end.
        cdef uint32_t stage = self.state.stage.load(memory_order_relaxed)
        if stage != DONE:
            if stage == EXPIRED:
                raise self.expiry()
            if stage == CANCELLED:
                raise CancelledError("the request was cancelled")
            if stage == REFUSED:
                raise ClosedError("the engine was closed before this request could run")
            message = take_message(self.state.status, &code)
            self.state.status = NULL
            # Kernels use this code too, but then ORT names the node.
            if code == ORT_INVALID_ARGUMENT and "while running" not in message:
                raise InputError(f"onnxruntime does not take these inputs: {message}")
            raise InferenceError(f"onnxruntime failed (code {code}): {message}")
        if self.key:
            note_class(
                self.state.model.instant_classes, self.key,
                self.state.alone_ns
                < <uint64_t>(INSTANT_NS if self.state.by_worker else NOT_INSTANT_NS),
            )
        outputs = [None] * <Py_ssize_t>self.state.model.num_outputs
        for i in range(self.state.model.num_outputs):
            value = self.state.outputs[i]
            self.state.outputs[i] = NULL
            outputs[i] = output_from(value, <ValueInfo>self.output_infos[i], self.borrowed)
        return outputs

    cpdef object expiry(self):
        """The DeadlineExceeded of a request that had a timeout and has missed it."""
        timeout_s = (self.state.deadline_ns - self.state.submitted_ns) / 1e9
        # relaxed: words for a human.
        if self.state.is_refused:
            needed_s = self.state.model.needed_ns.load(memory_order_relaxed) / 1e9
            return DeadlineExceeded(
                f"the request was not started: a run takes about {needed_s:.4g} s, more than what "
                f"was left of its timeout of {timeout_s:.4g} s"
            )
        where = (
            "while it waited for a stream" if self.state.group.load(memory_order_relaxed) < 0
            else "while it ran, and the run was stopped"
        )
        return DeadlineExceeded(f"the request's timeout of {timeout_s:.4g} s expired {where}")

    @property
    def ran_inline(self) -> bool:
        """Whether the thread that started it ran it; it has ended then, and is in no inbox."""
        return not self.state.by_worker

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.state.stage.load(memory_order_relaxed) == RUNNING

    @property
    def times_ns(self) -> tuple:
        """When it was queued, and when its run began and ended, by the monotonic clock. Of a
        request that has ended; 0: it never ran."""
        return self.state.submitted_ns, self.state.started_ns, self.state.ended_ns


cdef Request new_request(
    object owner, ModelState* model, list input_infos, list output_infos, list inputs,
    bint check_inputs,
):
    """Checks and converts `inputs`, as many as `input_infos` and in their order.

    `owner` is kept alive by the request, and must own `model`.
    """
    cdef Request request = Request.__new__(Request)
    cdef RequestState* state = &request.state
    cdef size_t i, num_infos = len(input_infos)
    cdef ValueInfo info
    cdef OrtValue* value
    request.generation = fork_generation()
    request.owner = owner
    request.output_infos = output_infos
    request.borrowed = PyList_GetSlice(inputs, 0, num_infos)  # the caller may change its list
    state.model = model
    state.input_names = model.input_names
    state.num_parts = 1
    state.deadline_ns = NO_DEADLINE
    state.group.store(-1, memory_order_relaxed)  # relaxed: nobody else knows it yet
    if num_infos + model.num_outputs <= NUM_OWN_VALUES:
        state.inputs = state.own_values
        state.outputs = state.own_values + num_infos
    else:
        request.arrays = <void**>calloc(num_infos + model.num_outputs, sizeof(void*))
        if request.arrays == NULL:
            raise MemoryError("no memory for a request")
        state.inputs = <OrtValue**>request.arrays
        state.outputs = state.inputs + num_infos
    for i in range(num_infos):
        info = <ValueInfo>input_infos[i]
        value = info.to_ort(request.borrowed[i], request.borrowed, check_inputs)
        if value != NULL:
            if state.num_inputs < i:
                _rename(request, i, num_infos)
            state.inputs[state.num_inputs] = value
            state.num_inputs += 1
    start_completion(&state.completion)
    return request


cdef _rename(Request request, size_t i, size_t num_infos):
    """An optional input, or one with a default, was left out: the names that remain are not the model's array."""
    cdef RequestState* state = &request.state
    cdef const char** all_names = state.model.input_names
    cdef size_t k, num_values = num_infos + state.model.num_outputs
    cdef void** arrays
    if state.input_names == all_names:
        arrays = <void**>calloc(num_values + num_infos, sizeof(void*))
        if arrays == NULL:
            raise MemoryError("no memory for a request")
        for k in range(state.num_inputs):
            arrays[k] = state.inputs[k]
            arrays[num_values + k] = <void*>all_names[k]
        free(request.arrays)
        request.arrays = arrays
        state.inputs = <OrtValue**>arrays
        state.outputs = state.inputs + num_infos
        state.input_names = <const char**>(arrays + num_values)
    state.input_names[state.num_inputs] = all_names[i]


# --- Stages -------------------------------------------------------------------------------------


cdef bint begin(RequestState* request, bint others_wait) noexcept nogil:
    """A worker takes it out of its caller's hands. False: it has ended, without a run."""
    cdef uint32_t queued = QUEUED
    cdef uint32_t next_stage = RUNNING
    # acquire: pairs with Model.close; a request that sees it closing is refused.
    if request.model.admission.load(memory_order_acquire) == CLOSING:
        next_stage = REFUSED
    elif is_late(request) or (others_wait and is_hopeless(request)):
        next_stage = EXPIRED
    # acq_rel: against whoever withdraws it; exactly one of the two wins.
    if not request.stage.compare_exchange_strong(queued, next_stage, memory_order_acq_rel):
        return False  # and its withdrawer has counted it
    if next_stage == RUNNING:
        return True
    # relaxed: statistics.
    if next_stage == EXPIRED:
        request.model.unrun.num_expired.fetch_add(request.num_parts, memory_order_relaxed)
    else:
        request.model.unrun.num_cancelled.fetch_add(request.num_parts, memory_order_relaxed)
    trace_end(request, <Stage>next_stage)
    return False


cdef bint is_late(RequestState* request) noexcept nogil:
    return request.deadline_ns != NO_DEADLINE and request.deadline_ns <= now_ns()


cdef bint is_hopeless(RequestState* request) noexcept nogil:
    """Whether less time is left than a run takes, where others wait for its cores.

    README, "A request's life". relaxed: statistics; a lost update does no harm.
    """
    cdef uint64_t now, needed
    if request.deadline_ns == NO_DEADLINE:
        return False
    now = now_ns()
    needed = request.model.needed_ns.load(memory_order_relaxed)
    if now + needed <= request.deadline_ns:
        return False
    # One stream spends an eighth of its time at most on finding out whether that is still true.
    if now > request.model.probed_ns.load(memory_order_relaxed) + 8 * needed:
        request.model.probed_ns.store(now, memory_order_relaxed)
        return False
    if now > request.model.lowered_ns.load(memory_order_relaxed) + needed:
        request.model.lowered_ns.store(now, memory_order_relaxed)
        request.model.needed_ns.store(needed - needed // 64, memory_order_relaxed)
    request.is_refused = True
    return True


cdef bint withdraw(RequestState* request, Stage end) noexcept nogil:
    """Ends it as `end`, EXPIRED or CANCELLED, if it has not begun."""
    cdef uint32_t queued = QUEUED
    # acq_rel: against begin(); exactly one of the two wins.
    if not request.stage.compare_exchange_strong(queued, end, memory_order_acq_rel):
        return False
    # relaxed: statistics.
    if end == EXPIRED:
        request.model.unrun.num_expired.fetch_add(request.num_parts, memory_order_relaxed)
    else:
        request.model.unrun.num_cancelled.fetch_add(request.num_parts, memory_order_relaxed)
    trace_end(request, end)
    return True


cdef void trace_end(RequestState* request, Stage end) noexcept nogil:
    """Tells whoever traces how it ended. Before its caller hears of it, who may end the trace."""
    cdef TraceEntry entry
    cdef uint32_t i
    if not is_on(request.model.trace):
        return
    entry.model = request.model.number
    entry.group = request.group.load(memory_order_relaxed)
    entry.stage = end
    entry.by_worker = request.by_worker
    entry.num_together = request.num_together
    entry.submitted_ns = request.submitted_ns
    entry.started_ns = request.started_ns
    entry.ended_ns = request.ended_ns or now_ns()
    for i in range(request.num_parts):
        record_entry(request.model.trace, entry)


cdef void release_outputs(RequestState* request) noexcept nogil:
    """Frees what a run left, for the next run of the same request."""
    cdef size_t i
    for i in range(request.model.num_outputs):
        if request.outputs[i] != NULL:
            loaded_library().api.ReleaseValue(request.outputs[i])
            request.outputs[i] = NULL


cdef void* finish(RequestState* request) noexcept nogil:
    """A worker's last act for a request that was queued: from here on its caller may free it.

    Returns an inbox that the worker owes a notification, or NULL.
    """
    cdef void* inbox = request.inbox
    # The caller or its inbox keeps the request, and that the model, until the next line but one.
    leave(request.model)
    if inbox == NULL:
        complete(&request.completion)
        return NULL
    return inbox if (<Inbox>inbox).post(&request.node) else NULL


# --- Counting requests of a model: README, "Shutdown" -------------------------------------------


cdef bint enter(ModelState* model) noexcept nogil:
    """Counts a request in; False where the model has moved, or is closing.

    seq_cst, here and where `admission` is set: either we see that, or whoever set it sees us
    counted.
    """
    model.in_flight.fetch_add(1, memory_order_seq_cst)
    if model.admission.load(memory_order_seq_cst) != OPEN:
        leave(model)
        return False
    return True


cdef void leave(ModelState* model) noexcept nogil:
    """Counts a request out. The caller keeps `model` alive."""
    model.in_flight.fetch_sub(1, memory_order_seq_cst)
    if model.admission.load(memory_order_seq_cst) != OPEN:
        futex_wake(&model.in_flight, WAKE_ALL)
