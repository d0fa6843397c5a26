from deepsched.runtime.completion cimport Completion
from deepsched.runtime.ort cimport OrtRunOptions, OrtSession, OrtStatus, OrtValue
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum Stage:
    QUEUED = 0  # not begun; the one who moves it on decides how it ends
    RUNNING = 1  # inside ORT, or back from there: ends with a result or an error
    CANCELLED = 2  # withdrawn by its caller before it began
    REFUSED = 3  # its model was closed before it began

cdef struct ModelState:
    # What threads without the GIL see of a model. `closing` is set once.
    OrtSession** sessions  # by core group
    const char** output_names
    size_t num_outputs
    atomic[uint32_t] closing
    atomic[uint32_t] in_flight  # calls between enter and leave; a futex word for close
    atomic[uint64_t] typical_ns  # smoothed length of a run; 0 until the first

cdef struct RequestState:
    # One request as threads without the GIL see it.
    ModelState* model
    const char** input_names
    OrtValue** inputs
    size_t num_inputs
    OrtValue** outputs
    OrtStatus* status
    OrtRunOptions* run_options  # only requests that another thread runs can be stopped
    Completion completion
    atomic[uint32_t] stage
    int group
    bint by_worker
    uint64_t submitted_ns
    uint64_t started_ns
    uint64_t ended_ns

cdef class Request:
    cdef RequestState state
    cdef void** arrays
    cdef list borrowed
    cdef readonly object owner
    cdef uint32_t generation

    cdef list take_outputs(self)
    cdef make_stoppable(self)
    cdef void stop_running(self) noexcept nogil

cdef Request new_request(object owner, ModelState* model, list infos, list names, object inputs)
cdef void run_request(RequestState* request, int group) noexcept nogil
cdef bint begin(RequestState* request) noexcept nogil
