"""One ORT session for one (model, core group), with intra-op threads pinned inside the group."""

cimport cython
from deepsched.runtime.futex cimport futex_wait, futex_wake
from deepsched.runtime.library cimport Library, check, library, loaded_library, take_message
from deepsched.runtime.numa cimport MemoryPolicy, policy_for, set_thread_policy
from deepsched.runtime.ort cimport (
    CountFn, LOG_FATAL, NameFn, OPTIMIZE_ALL, OPTIMIZE_NOTHING, ORT_INVALID_ARGUMENT, ORT_INVALID_GRAPH,
    ORT_INVALID_PROTOBUF, ORT_NO_SUCHFILE, ORT_NOT_IMPLEMENTED, OrtAllocator, OrtApi,
    OrtEnv, OrtKeyValuePairs, OrtSession, OrtSessionOptions, OrtStatus, OrtTypeInfo, ThreadBodyFn,
    TypeInfoFn,
)
from deepsched.runtime.pins cimport one_cpu
from deepsched.runtime.pool cimport fork_generation, thread_name
from deepsched.runtime.posix cimport CpuMask, pthread_join, run_aside, start_thread_anyway
from deepsched.runtime.values cimport ValueInfo, describe_value
from libc.stdio cimport snprintf
from libc.errno cimport ENOMEM
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport strcpy
from libcpp.atomic cimport atomic, memory_order_acquire, memory_order_release

import os

from deepsched.errors import (
    ClosedError, InvalidModelError, ModelError, ModelNotFoundError, OptionError, ThreadError,
    UnsupportedModelError,
)

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

# --- ORT's threads ------------------------------------------------------------------------------

# Started before ORT is entered. If ORT cannot start one of several threads (pids.max, an offline
# CPU), it joins those that it has started without telling them to stop: a hang, in ORT 1.32.

cdef enum:
    IDLE = 0  # waits for ORT to give it a body; its order is a futex word
    WORKING = 1  # runs ORT's body
    DISMISSED = 2  # ORT has no work for it


cdef void* _op_thread_main(void* argument) noexcept nogil:
    cdef OpThread* op_thread = <OpThread*>argument
    cdef uint32_t order
    while True:
        # acquire: pairs with the release in _give_order; `body` is visible.
        order = op_thread.order.load(memory_order_acquire)
        if order == WORKING:
            op_thread.body(op_thread.argument)
            return NULL
        if order == DISMISSED:
            return NULL
        futex_wait(&op_thread.order, IDLE, -1)


cdef void _give_order(OpThread* op_thread, uint32_t order) noexcept nogil:
    op_thread.order.store(order, memory_order_release)
    futex_wake(&op_thread.order, 1)


cdef int _start_team(ThreadTeam* team, int num_threads) noexcept nogil:
    """Starts all threads of the team but the caller of Run. Returns 0 or an errno."""
    cdef char name[32]
    cdef CpuMask mask
    cdef OpThread* op_thread
    cdef int error
    team.threads = <OpThread**>calloc(num_threads, sizeof(OpThread*))
    if team.threads == NULL:
        return ENOMEM
    while team.num_started < num_threads - 1:
        op_thread = <OpThread*>calloc(1, sizeof(OpThread))
        if op_thread == NULL:
            return ENOMEM
        op_thread.generation = fork_generation()
        snprintf(name, sizeof(name), b"%s-op%d", team.prefix, team.num_started + 1)
        name[15] = 0  # what the kernel takes
        mask.num_bytes = 0
        if team.cpus != NULL:
            one_cpu(&mask, team.cpus[team.num_started + 1])
        error = start_thread_anyway(&op_thread.thread, name, &mask, _op_thread_main, op_thread)
        if error:
            free(op_thread)
            return error
        team.threads[team.num_started] = op_thread
        team.num_started += 1
    return 0


cdef void _dismiss_rest(ThreadTeam* team) noexcept nogil:
    """Ends the threads that ORT has not taken."""
    cdef int i
    for i in range(team.num_taken, team.num_started):
        _give_order(team.threads[i], DISMISSED)
        _on_join_thread(team.threads[i])
    team.num_started = team.num_taken  # check_pins looks at all that there are


cdef void* _on_create_thread(void* options, ThreadBodyFn body, void* argument) noexcept nogil:
    """ORT wants one more intra-op thread: takes the next that was started for it."""
    cdef ThreadTeam* team = <ThreadTeam*>options
    cdef OpThread* op_thread
    if team.num_taken == team.num_started:
        return NULL  # fails the session's creation
    op_thread = team.threads[team.num_taken]
    team.num_taken += 1
    op_thread.body = body
    op_thread.argument = argument
    _give_order(op_thread, WORKING)
    return op_thread


cdef void _on_join_thread(const void* handle) noexcept nogil:
    cdef OpThread* op_thread = <OpThread*>handle
    if op_thread.generation == fork_generation():
        pthread_join(op_thread.thread, NULL)
    free(op_thread)


# --- Sessions -----------------------------------------------------------------------------------


@cython.final
cdef class Session:
    """Made by `open_session`. Its native handle is used by the dispatcher."""

    def __init__(self):
        raise TypeError("sessions come from open_session")

    def __dealloc__(self):
        self.close()
        free(self.team.cpus)
        free(self.team.threads)

    cdef close(self):
        """Releases ORT's session, once. No run may be under way."""
        cdef OrtSession* handle
        with cython.critical_section(self):  # of two callers one finds NULL
            handle = self.handle
            self.handle = NULL
        if handle == NULL or self.generation != fork_generation():
            return  # a forked child has none of the threads that ORT would wait for
        with nogil:
            loaded_library().api.ReleaseSession(handle)

    cdef reserve(self):
        """Lets the arena make its first region, of 1 MB, which ORT never gives back: if the first
        run has a large input, it would be as large as that."""
        cdef Library* lib = library()
        cdef OrtAllocator* allocator = NULL
        cdef void* block = NULL
        before = self.arena_bytes() or 0
        check(lib.api.CreateAllocator(self.handle, lib.cpu_memory, &allocator))
        try:
            check(lib.api.AllocatorAlloc(allocator, 1, &block))
            check(lib.api.AllocatorFree(allocator, block))
        finally:
            lib.api.ReleaseAllocator(allocator)
        self.reserved_bytes = (self.arena_bytes() or 0) - before

    def describe_inputs(self) -> list:
        """A ValueInfo for each input that a caller must give, in the graph's order."""
        cdef const OrtApi* api = library().api
        return self._describe(
            api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo, False
        )

    def describe_overridable(self) -> list:
        """A ValueInfo for each input that has a default: an initializer of the same name."""
        cdef const OrtApi* api = library().api
        return self._describe(
            api.SessionGetOverridableInitializerCount, api.SessionGetOverridableInitializerName,
            api.SessionGetOverridableInitializerTypeInfo, True,
        )

    def describe_outputs(self) -> list:
        """A ValueInfo for each output of the graph, in its order."""
        cdef const OrtApi* api = library().api
        return self._describe(
            api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo, False
        )

    cdef list _describe(
        self, CountFn get_count, NameFn get_name, TypeInfoFn get_type, bint has_default
    ):
        cdef const OrtApi* api = library().api
        cdef ValueInfo described
        cdef size_t i, count = 0
        cdef char* name
        cdef OrtTypeInfo* info
        found = []
        check(get_count(self.handle, &count))
        for i in range(count):
            name = NULL
            info = NULL
            check(get_name(self.handle, i, library().allocator, &name))
            check(get_type(self.handle, i, &info))
            try:
                described = describe_value(name.decode(errors="replace"), info)
                described.has_default = has_default
                found.append(described)
            except UnsupportedModelError:
                if not has_default:  # else the default serves
                    raise
            finally:
                api.ReleaseTypeInfo(info)
                check(api.AllocatorFree(library().allocator, name))
        return found

    def end_profiling(self) -> str:
        """Ends what `profile_to` began; the path of ORT's timeline, JSON in Chrome's format.

        No run may be under way.
        """
        cdef Library* lib = library()
        cdef char* path = NULL
        cdef OrtStatus* status = NULL
        cdef bint is_open
        with cython.critical_section(self):  # nobody closes it meanwhile
            is_open = self.handle != NULL
            if is_open:
                status = lib.api.SessionEndProfiling(self.handle, lib.allocator, &path)
        if not is_open:
            raise ClosedError("this session is closed, and its profile with it")
        check(status)
        try:
            return os.fsdecode(<bytes>path)
        finally:
            check(lib.api.AllocatorFree(lib.allocator, path))

    def arena_bytes(self) -> int | None:
        """Bytes that its arena has taken from the system: activations, and weights unless they are
        mapped from a file. None: it is closed."""
        cdef Library* lib = library()
        cdef OrtAllocator* allocator = NULL
        cdef OrtKeyValuePairs* stats = NULL
        cdef OrtStatus* status
        cdef const char* total
        with cython.critical_section(self):  # nobody closes it meanwhile
            if self.handle == NULL:
                return None
            status = lib.api.CreateAllocator(self.handle, lib.cpu_memory, &allocator)
            if status == NULL:
                status = lib.api.AllocatorGetStats(allocator, &stats)
                lib.api.ReleaseAllocator(allocator)
        check(status)
        total = lib.api.GetKeyValue(stats, b"TotalAllocated")
        found = None if total == NULL else int(total)
        lib.api.ReleaseKeyValuePairs(stats)
        return found


cdef struct Creation:
    const OrtApi* api
    const OrtEnv* env
    const char* start  # a path, or a serialized model
    size_t num_bytes  # of the model
    bint is_path
    OrtSessionOptions* options
    OrtSession** handle
    OrtStatus* status


cdef void* _create(void* argument) noexcept nogil:
    cdef Creation* it = <Creation*>argument
    if it.is_path:
        it.status = it.api.CreateSession(it.env, it.start, it.options, it.handle)
    else:
        it.status = it.api.CreateSessionFromArray(
            it.env, it.start, it.num_bytes, it.options, it.handle
        )
    return NULL


def open_session(
    model, *, int num_threads, cpus, str thread_prefix, dict config, str name=None,
    bint is_optimized=False, save_to=None, profile_to=None, tuple custom_ops=(), files=None,
    nodes=(), bint is_aside=False,
) -> Session:
    """Opens `model`, a path (str) or a serialized ModelProto (bytes); the GIL is released.

    Args:
        num_threads: how many threads work on one operator, the caller of Run included.
        cpus: a CPU for each of these threads (OS numbers), the caller's first; None for anywhere.
        thread_prefix: their names are "<thread_prefix>-op1" and so on.
        config: ORT's session config entries.
        name: what errors call it; by default the path, or the number of bytes.
        is_optimized: ORT saved the model after optimising it, so it is taken as it is.
        save_to: a path that ORT writes the optimised model to.
        profile_to: the beginning of a path, to which ORT adds date and time. It times every
            operator, until `end_profiling`.
        custom_ops: paths of libraries of operators. ORT unloads them after the session.
        files: external data that is in memory, bytes by the names that the model has for it. ORT
            copies it.
        nodes: NUMA nodes for the weights, unless they are mapped from a file; empty for any. What
            is saved goes there as well, as far as files stay in memory.
        is_aside: others serve meanwhile, and are to have the CPUs.

    Raises:
        OptionError: one of `custom_ops` cannot be loaded, or is no such library.
        ModelNotFoundError, InvalidModelError, UnsupportedModelError, ModelError.
        ThreadError: the system refuses a thread.
    """
    cdef Library* lib = library()
    cdef const OrtApi* api = lib.api
    cdef OrtSessionOptions* options = NULL
    cdef OrtStatus* status
    cdef Session session = Session.__new__(Session)
    cdef bytes path_or_model = model if isinstance(model, bytes) else os.fsencode(model)
    cdef const char* start = path_or_model
    cdef size_t num_bytes = len(path_or_model)
    cdef bint is_path = not isinstance(model, bytes)
    cdef Creation creation
    cdef bytes name_bytes, content
    cdef const char* name_start
    cdef char* content_start
    cdef size_t content_size
    cdef MemoryPolicy policy, policy_before
    cdef bint has_policy = len(nodes) > 0
    if has_policy:
        policy = policy_for(nodes)
    session.generation = fork_generation()
    if cpus is not None:
        session.team.cpus = <int*>malloc(num_threads * sizeof(int))
        if session.team.cpus == NULL:
            raise MemoryError(f"no memory for {num_threads} threads")
        for i in range(num_threads):
            session.team.cpus[i] = cpus[i]
    strcpy(session.team.prefix, thread_name(thread_prefix))
    session.reserved_bytes = 0
    cdef int error, num_started
    with nogil:
        error = _start_team(&session.team, num_threads)
        num_started = session.team.num_started
        if error:
            _dismiss_rest(&session.team)
    if error:
        raise ThreadError(
            error,
            f"could not start thread {num_started + 1} of the {num_threads - 1} that "
            f"work for ONNX Runtime on one stream: {os.strerror(error)}. Fewer cores need fewer "
            "threads (a container limits them by pids.max, a user by RLIMIT_NPROC)",
        )
    try:
        check(api.CreateSessionOptions(&options))
        check(api.SetSessionLogSeverityLevel(options, LOG_FATAL))
        level = OPTIMIZE_NOTHING if is_optimized else OPTIMIZE_ALL
        check(api.SetSessionGraphOptimizationLevel(options, level))
        if save_to is not None:
            check(api.SetOptimizedModelFilePath(options, os.fsencode(save_to)))
        if profile_to is not None:
            check(api.EnableProfiling(options, os.fsencode(profile_to)))
        check(api.SetIntraOpNumThreads(options, num_threads))
        check(api.SetInterOpNumThreads(options, 1))
        check(api.SessionOptionsSetCustomCreateThreadFn(options, _on_create_thread))
        check(api.SessionOptionsSetCustomThreadCreationOptions(options, &session.team))
        check(api.SessionOptionsSetCustomJoinThreadFn(options, _on_join_thread))
        for key, value in config.items():
            # A folder's name may be no UTF-8.
            check(api.AddSessionConfigEntry(options, os.fsencode(key), os.fsencode(value)))
        for path in custom_ops:
            status = api.RegisterCustomOpsLibrary_V2(options, os.fsencode(path))
            if status != NULL:
                raise OptionError(
                    f"custom_ops: {path!r} is no library of operators for this onnxruntime: "
                    + take_message(status, &error)
                )
        for file_name, content in (files or {}).items():
            name_bytes = os.fsencode(file_name)
            name_start, content_start = name_bytes, content
            content_size = len(content)
            check(api.AddExternalInitializersFromFilesInMemory(
                options, &name_start, &content_start, &content_size, 1
            ))
        creation = Creation(
            api, lib.env, start, num_bytes, is_path, options, &session.handle, NULL
        )
        with nogil:
            # ORT's threads have been started, so they inherit neither policy nor priority:
            # activations lie where they are first written to. Where the system refuses, weights lie
            # where we run.
            has_policy = has_policy and set_thread_policy(&policy, &policy_before)
            if has_policy:
                malloc_trim(0)  # memory that was used and freed stays on the node where it is
            if is_aside:
                run_aside(_create, &creation)
            else:
                _create(&creation)
            if has_policy:
                set_thread_policy(&policy_before, NULL)
        if creation.status != NULL:
            _raise_for_load(creation.status, model, name)
        if save_to is None:
            session.reserve()
    finally:
        with nogil:
            _dismiss_rest(&session.team)
        if options != NULL:
            api.ReleaseSessionOptions(options)
    return session


def trim_heap() -> None:
    """Gives freed memory back to the system.

    Opening a session packs every weight before it takes the packed form from the file, and glibc
    keeps what was freed: 10 to 15 MB for each session of a model with 4 MB matrices.
    """
    with nogil:
        malloc_trim(0)


cdef _raise_for_load(OrtStatus* status, model, str name):
    cdef int code = 0
    message = take_message(status, &code)
    if name is None and isinstance(model, bytes):
        name = f"model of {len(model)} bytes"
    else:
        name = repr(os.fspath(model) if name is None else name)
    if code == ORT_NO_SUCHFILE:
        raise ModelNotFoundError(f"{name}: {message}")
    if "bad_alloc" in message:  # what ORT says of a limit of address space, RLIMIT_AS
        raise ModelError(f"{name} could not be opened: there is too little memory ({message})")
    # ORT's codes do not tell these apart: an unknown operator is INVALID_GRAPH, and so is a cycle.
    unsupported = (
        "opset", "IR version", "No Op registered", "is not a registered", "Could not find an impl",
    )
    if code == ORT_NOT_IMPLEMENTED or any(word in message for word in unsupported):
        hint = (
            ". Operators of other domains come from libraries: custom_ops=[path]"
            if "is not a registered" in message else ""
        )
        raise UnsupportedModelError(
            f"{name} needs something that this onnxruntime does not have: {message}{hint}"
        )
    invalid = (ORT_INVALID_ARGUMENT, ORT_INVALID_PROTOBUF, ORT_INVALID_GRAPH)
    if code in invalid or "Load model" in message or "Type Error" in message:
        raise InvalidModelError(f"{name} is not a valid ONNX model: {message}")
    raise ModelError(f"{name} could not be opened (onnxruntime code {code}): {message}")
