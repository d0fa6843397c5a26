from deepsched.runtime.backlog cimport Backlog
from deepsched.runtime.batch_plan cimport BatchPlan
from deepsched.runtime.ort cimport OrtRunOptions, OrtStatus, OrtValue
from deepsched.runtime.queue cimport Tag
from deepsched.runtime.request cimport RequestState
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MAX_VALUES = 64  # inputs and outputs, together, of a model whose requests run together

cdef enum Split:
    SPLIT
    OUTPUTS_DO_NOT_FIT
    NO_MEMORY

cdef struct Joined:
    # What one run for several requests takes and gives.
    OrtValue* inputs[MAX_VALUES]
    OrtValue* outputs[MAX_VALUES]

cdef struct Batch:
    # Requests that one thread has popped to run them together.
    RequestState* first  # the others follow it by `next_mate`
    RequestState* last
    uint32_t num_requests
    uint32_t num_parts  # that these count for
    uint32_t num_items
    uint32_t num_units
    uint64_t deadline_ns  # the earliest
    bint is_mixed  # one of them does not fit: the key was another's by accident

cdef Tag tag_of(RequestState* request) noexcept nogil
cdef bint goes_with(Batch* batch, Tag* tag, uint32_t most) noexcept nogil
cdef void begin_batch(Batch* batch, RequestState* first) noexcept nogil
cdef RequestState* pop_mate(
    Backlog backlog, Batch* batch, BatchPlan* plan, uint32_t most
) noexcept nogil
cdef void add_mate(Batch* batch, RequestState* mate) noexcept nogil
cdef OrtStatus* run_joined(
    Joined* joined, Batch* batch, BatchPlan* plan, int group, OrtRunOptions* options
) noexcept nogil
cdef Split split_outputs(Joined* joined, Batch* batch) noexcept nogil
cdef Split check_outputs(RequestState* request) noexcept nogil
cdef void release_joined(Joined* joined, Batch* batch) noexcept nogil
