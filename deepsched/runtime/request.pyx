"""One inference: its inputs, its run on a core group, its outputs or its error.

README.md, "A request's life".
"""

cimport cython
from deepsched.runtime.completion cimport start_completion
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.library cimport check, loaded_library, take_message
from deepsched.runtime.ort cimport ORT_INVALID_ARGUMENT, OrtApi, OrtValue
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.values cimport ValueInfo, from_ort
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acq_rel, memory_order_acquire, memory_order_relaxed

from deepsched.errors import InferenceError, InputError


@cython.final
@cython.no_gc_clear  # __dealloc__ looks into the model that `owner` keeps alive
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
        if self.arrays == NULL or self.generation != fork_generation():
            return
        for i in range(self.state.num_inputs):
            api.ReleaseValue(self.state.inputs[i])
        for i in range(self.state.model.num_outputs):
            if self.state.outputs[i] != NULL:
                api.ReleaseValue(self.state.outputs[i])
        if self.state.status != NULL:
            api.ReleaseStatus(self.state.status)
        if self.state.run_options != NULL:
            api.ReleaseRunOptions(self.state.run_options)
        free(self.arrays)

    cdef make_stoppable(self):
        """Before it is queued: lets `stop_running` end it early."""
        check(loaded_library().api.CreateRunOptions(&self.state.run_options))

    cdef void stop_running(self) noexcept nogil:
        """Asks ORT to end the run at the next operator."""
        cdef const OrtApi* api = loaded_library().api
        if self.state.run_options != NULL:
            status = api.RunOptionsSetTerminate(self.state.run_options)
            if status != NULL:
                api.ReleaseStatus(status)

    cdef list take_outputs(self):
        """The outputs of a request that ran, as Python values; or its error."""
        cdef int code = 0
        cdef size_t i
        cdef OrtValue* value
        if self.state.status != NULL:
            message = take_message(self.state.status, &code)
            self.state.status = NULL
            # Kernels use this code too, but then ORT names the node.
            if code == ORT_INVALID_ARGUMENT and "while running" not in message:
                raise InputError(f"onnxruntime does not take these inputs: {message}")
            raise InferenceError(f"onnxruntime failed (code {code}): {message}")
        outputs = []
        for i in range(self.state.model.num_outputs):
            value = self.state.outputs[i]
            self.state.outputs[i] = NULL
            outputs.append(from_ort(value, self.borrowed))
        return outputs

    @property
    def record(self) -> tuple:
        """(group, by_worker, submitted_ns, started_ns, ended_ns), of the monotonic clock."""
        return (
            self.state.group, bool(self.state.by_worker), self.state.submitted_ns,
            self.state.started_ns, self.state.ended_ns,
        )


cdef Request new_request(object owner, ModelState* model, list infos, list names, object inputs):
    """Checks and converts `inputs` (a list, in the order of `infos`).

    `owner` is kept alive by the request and must own `model` and `names` (bytes objects).
    """
    cdef Request request = Request.__new__(Request)
    cdef size_t i, num_infos = len(infos)
    cdef ValueInfo info
    cdef OrtValue* value
    # One block: names and values of the inputs, then the outputs.
    request.arrays = <void**>calloc(2 * num_infos + model.num_outputs + 1, sizeof(void*))
    if request.arrays == NULL:
        raise MemoryError("no memory for a request")
    request.generation = fork_generation()
    request.owner = owner
    request.borrowed = []
    request.state.model = model
    request.state.input_names = <const char**>request.arrays
    request.state.inputs = <OrtValue**>(request.arrays + num_infos)
    request.state.outputs = <OrtValue**>(request.arrays + 2 * num_infos)
    for i in range(num_infos):
        info = infos[i]
        value = info.to_ort(inputs[i], request.borrowed)
        if value != NULL:
            request.state.input_names[request.state.num_inputs] = <bytes>names[i]
            request.state.inputs[request.state.num_inputs] = value
            request.state.num_inputs += 1
    start_completion(&request.state.completion)
    request.state.submitted_ns = now_ns()
    return request


cdef bint begin(RequestState* request) noexcept nogil:
    """Takes a queued request out of its callers' hands; False where it ends without a run."""
    cdef uint32_t queued = QUEUED
    # acquire: pairs with Model.close; a request that sees it set is refused.
    cdef uint32_t next_stage = REFUSED if request.model.closing.load(memory_order_acquire) \
        else RUNNING
    # acq_rel: against the caller that withdraws it; exactly one of the two wins.
    if not request.stage.compare_exchange_strong(queued, next_stage, memory_order_acq_rel):
        return False
    return next_stage == RUNNING


cdef void run_request(RequestState* request, int group) noexcept nogil:
    """Runs a request that has begun, on the calling thread, with the session of `group`."""
    cdef ModelState* model = request.model
    cdef uint64_t typical, length
    request.group = group
    request.started_ns = now_ns()
    request.status = loaded_library().api.Run(
        model.sessions[group], request.run_options, request.input_names, request.inputs,
        request.num_inputs, model.output_names, model.num_outputs, request.outputs,
    )
    request.ended_ns = now_ns()
    length = request.ended_ns - request.started_ns
    # relaxed: a statistic; an update lost to another thread does no harm.
    typical = model.typical_ns.load(memory_order_relaxed)
    model.typical_ns.store(
        typical - typical // 8 + length // 8 if typical else length, memory_order_relaxed
    )
