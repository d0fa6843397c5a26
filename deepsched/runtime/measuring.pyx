"""How long a model's runs take on a core group that nobody else uses meanwhile.

README.md, "Claim and release".
"""

from cpython.exc cimport PyErr_CheckSignals
from deepsched.runtime.dispatch cimport Dispatcher
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.posix cimport CpuMask, is_main_thread, run_aside
from deepsched.runtime.request cimport DONE, FAILED, Request, RequestState, release_outputs
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_relaxed
from posix.unistd cimport usleep

from deepsched.errors import ForkError, InferenceError

# How long a measurement keeps others off a busy group while it waits for it.
cdef uint64_t MAX_RESERVED_NS = 5_000_000_000

cdef enum Measuring:
    MEASURED
    STILL_BUSY  # the group did not become free within the window
    OTHERS_MEASURE


cdef uint64_t measure(
    Dispatcher dispatcher, int group, Request request, double seconds
) except? 0:
    """Shortest of several runs of `request` on `group`, in ns; measures for about `seconds`.

    Reserves the group and waits until it is free; requests that wait are served after that.

    Raises:
        ValueError: no such group, or none that can be reserved.
        InferenceError: what runs there does not end in MAX_RESERVED_NS; or a run fails.
    """
    cdef uint64_t shortest_ns = 0, reserved_ns = 0
    # No Python while the group is reserved or claimed: a signal handler or a finalizer could
    # wait for requests that nobody may serve then. So the main thread, which must hear
    # signals, lets go of it from time to time.
    cdef uint64_t window_ns = 1_000_000_000 if is_main_thread() else MAX_RESERVED_NS
    cdef Measuring outcome = OTHERS_MEASURE
    if not dispatcher.is_elastic or not 0 <= group < dispatcher.num_groups:
        raise ValueError(f"no group {group} to measure; there are {dispatcher.num_groups}")
    while outcome != MEASURED:
        with nogil:
            outcome = try_measure(
                dispatcher, &request.state, group, <uint64_t>(seconds * 1e9), window_ns, &shortest_ns
            )
        if outcome == STILL_BUSY:
            reserved_ns += window_ns
            if reserved_ns >= MAX_RESERVED_NS:
                raise InferenceError(
                    f"its cores were busy for {MAX_RESERVED_NS // 1_000_000_000} s"
                )
        PyErr_CheckSignals()
        if dispatcher.is_forked:  # by a handler
            raise ForkError("this engine's context belongs to the parent process")
    request.outputs()  # raises what went wrong
    return shortest_ns


cdef struct WarmUp:
    void* dispatcher
    RequestState* request
    int group


cdef void* _run_warm_up(void* argument) noexcept nogil:
    cdef WarmUp* it = <WarmUp*>argument
    time_run(<Dispatcher>it.dispatcher, it.request, it.group)
    return NULL


cdef warm(Dispatcher dispatcher, int group, Request request, bint is_aside):
    """Runs `request` on `group`, uncounted. Nobody may use the dispatcher yet.

    `is_aside`: those who use the cores meanwhile are to have them. Not for a group with threads of
    ORT's, which would spin while they wait for this one.
    """
    cdef WarmUp warm_up = WarmUp(<void*>dispatcher, &request.state, group)
    with nogil:
        if is_aside:
            run_aside(_run_warm_up, &warm_up)
        else:
            _run_warm_up(&warm_up)
    request.outputs()  # raises what went wrong


cdef Measuring try_measure(
    Dispatcher dispatcher, RequestState* request, int group, uint64_t enough_ns, uint64_t window_ns,
    uint64_t* shortest_ns,
) noexcept nogil:
    """Measures if the group can be had within `window_ns`."""
    cdef uint64_t mask = dispatcher.elastic.tree.mask[group]
    cdef uint64_t took_ns, began_ns = now_ns()
    cdef int num_runs = 0
    if not dispatcher.groups.reserve(mask):
        usleep(500)
        return OTHERS_MEASURE
    while not dispatcher.groups.claim_reserved(mask):
        if now_ns() - began_ns >= window_ns:
            dispatcher.groups.unreserve()
            dispatcher.retry()
            return STILL_BUSY
        usleep(500)
    began_ns = now_ns()
    while True:
        took_ns = time_run(dispatcher, request, group)
        num_runs += 1
        # The first run fills the arena, and does not count.
        if num_runs > 1 and (not shortest_ns[0] or took_ns < shortest_ns[0]):
            shortest_ns[0] = took_ns
        if request.status != NULL or (num_runs > 1 and now_ns() - began_ns >= enough_ns):
            break
        release_outputs(request)
    dispatcher.groups.release_all(mask)
    dispatcher.groups.unreserve()
    dispatcher.retry()  # what was pushed meanwhile found no group to claim
    return MEASURED


cdef uint64_t time_run(Dispatcher dispatcher, RequestState* request, int group) noexcept nogil:
    """Runs `request` on `group`, which the caller owns; returns the time it took, in ns.

    Not counted: it is part of no statistics.
    """
    cdef CpuMask own
    cdef bint moved = dispatcher.pins.move(&own, group)
    cdef uint64_t started_ns = now_ns(), took_ns
    dispatcher.runner.call_ort(request, group)
    took_ns = now_ns() - started_ns
    if moved:
        dispatcher.pins.put_back(&own)
    # relaxed: no other thread knows this request.
    request.stage.store(FAILED if request.status != NULL else DONE, memory_order_relaxed)
    return took_ns
