from deepsched.runtime.batch_plan cimport BatchPlanPointer
from deepsched.runtime.completion cimport Completion
from deepsched.runtime.estimates cimport Estimates
from deepsched.runtime.inbox cimport Inbox, Node
from deepsched.runtime.known_short cimport InputClass
from deepsched.runtime.ort cimport OrtSession, OrtStatus, OrtValue
from deepsched.runtime.session cimport ThreadTeam
from deepsched.runtime.statistics cimport GroupStats, UnrunStats
from deepsched.runtime.tracing cimport TraceState
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum:
    NO_DEADLINE = 0xFFFFFFFFFFFFFFFF
    # An event loop does a run itself that takes up to this long. A worker that is woken costs the
    # loop as much.
    INSTANT_NS = 30_000
    # From where on inputs of its class are left to workers again. Above that, as runs of 10 us that
    # the loop does after a sleep take 30 to 40 at the 99th percentile.
    NOT_INSTANT_NS = 45_000

cdef enum Stage:
    # Leaves QUEUED once, by compare-and-swap; whoever moves it on decides how it ends.
    QUEUED = 0  # not begun
    RUNNING = 1  # inside ORT, or on the way there or back
    # The ends:
    DONE = 2  # ran; the outputs are there
    FAILED = 3  # ran; `status` says what went wrong
    EXPIRED = 4  # its deadline passed before it began, or stopped it
    CANCELLED = 5  # withdrawn before it began, or stopped
    REFUSED = 6  # its model was closed before it began

cdef enum Admission:
    # Whether a model takes requests; only grows.
    OPEN = 0
    MOVED = 1  # none that come now; those that have been accepted run as usual
    CLOSING = 2  # none; those that have not begun are refused

cdef struct ModelState:
    # What threads without the GIL see of a model.
    OrtSession** sessions  # by core group
    ThreadTeam** teams  # theirs
    Estimates* estimates  # of its run lengths; of elastic contexts
    GroupStats* stats  # by core group
    UnrunStats unrun
    const char** input_names
    const char** output_names
    size_t num_outputs
    atomic[uint32_t] admission
    atomic[uint32_t] in_flight  # requests between enter and leave; a futex word for close
    atomic[uint64_t] typical_ns  # smoothed length of a run; 0 until the first
    atomic[uint64_t] needed_ns  # with less left before its deadline a request is not begun
    atomic[uint64_t] lowered_ns  # when a refusal lowered `needed_ns` last
    atomic[uint64_t] probed_ns  # when a request was begun in spite of it last
    InputClass* short_classes  # NUM_CLASSES of them
    atomic[BatchPlanPointer] plan  # of how its requests run together; NULL: they do not. Set once
    InputClass* instant_classes  # as many: those that an event loop runs itself
    TraceState* trace
    uint32_t number  # what traces call it

cdef enum:
    NUM_OWN_VALUES = 6  # more inputs and outputs than this cost a request an allocation

cdef struct RequestState:
    # One request as threads without the GIL see it.
    Node node  # for the inbox, if it has one; else its end is `completion`
    void* inbox
    ModelState* model
    const char** input_names
    OrtValue** inputs
    size_t num_inputs
    OrtValue** outputs
    OrtStatus* status
    Completion completion
    atomic[uint32_t] stage
    atomic[uint32_t] stop_reason  # EXPIRED or CANCELLED once somebody wants it stopped, else 0
    atomic[int] group  # -1 until it runs
    int priority
    bint is_stoppable  # another thread may want to stop it
    bint by_worker
    bint is_producer  # see Model.start
    bint is_trial  # its width is being tried
    bint is_refused  # not begun, though its deadline had not passed
    bint shrinks  # its end gives back the memory that it took
    bint may_be_long  # as the backlog counts it
    uint64_t deadline_ns  # NO_DEADLINE: none
    uint64_t expected_ns  # what the backlog counts it for
    uint64_t inputs_key  # the class of its inputs, by which it may be known to be short; 0: unknown
    uint64_t submitted_ns  # 0 until it is queued or, in a call that need not wait, begun
    uint64_t started_ns
    uint64_t ended_ns
    uint64_t alone_ns  # how long its run takes if it is the only one in it
    uint64_t batch_key  # README, "Batching"; 0: it runs by itself
    RequestState* next_mate  # that runs together with it
    uint32_t num_items  # its first dimension, where its model's requests run together
    uint32_t num_units  # what these count for: more if they are larger than those that were measured
    uint32_t num_parts  # how many it counts for: the items of a map that it has been made of; else 1
    uint32_t num_together  # as many in its run; 0: it has not run
    bint is_dropped  # stopped while others that run with it went on
    OrtValue* own_values[NUM_OWN_VALUES]

cdef class Request:
    cdef RequestState state
    cdef void** arrays
    cdef list borrowed
    cdef list output_infos
    cdef readonly object owner
    cdef readonly Inbox inbox
    cdef public object tag
    cdef readonly list parts_inputs  # of each of its parts, if it has several
    cdef bint is_loops  # whether inputs of its class are instant is to be learned
    cdef uint32_t generation

    cpdef list outputs(self)
    cpdef object expiry(self)

cdef Request new_request(
    object owner, ModelState* model, list input_infos, list output_infos, list inputs,
    bint check_inputs,
)
cdef bint begin(RequestState* request, bint others_wait) noexcept nogil
cdef bint is_late(RequestState* request) noexcept nogil
cdef void release_outputs(RequestState* request) noexcept nogil
cdef void* finish(RequestState* request) noexcept nogil
cdef bint withdraw(RequestState* request, Stage end) noexcept nogil
cdef void trace_end(RequestState* request, Stage end) noexcept nogil
cdef bint enter(ModelState* model) noexcept nogil
cdef void leave(ModelState* model) noexcept nogil
