"""Giving back what runs have taken: ONNX Runtime's arenas grow, and keep what they have.

README.md, "Giving memory back".

ORT (1.8 and later) shrinks the arena of a session at the end of a run that asks for it, and in no
other way that its C API has. So this is a run: without inputs, and told to stop before it begins,
so that no operator runs and no thread is needed. It frees the regions of which nothing is in use,
under the arena's lock; so other runs of the session may be under way, and keep what they use.
"""

from deepsched.runtime.library cimport check, library, loaded_library
from deepsched.runtime.ort cimport ELEMENT_STRING, OrtApi, OrtRunOptions, OrtStatus, OrtValue
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

ctypedef OrtRunOptions* OptionsPointer

# For all sessions: it is only read. NULL until there is one.
cdef atomic[OptionsPointer] _options


def prepare_shrinking() -> None:
    """To be called before `shrink`."""
    cdef OptionsPointer options = NULL, none = NULL
    if _options.load(memory_order_acquire) != NULL:
        return
    check(library().api.CreateRunOptions(&options))
    check(library().api.AddRunConfigEntry(
        options, b"memory.enable_memory_arena_shrinkage", b"cpu:0"
    ))
    check(library().api.RunOptionsSetTerminate(options))
    # release: pairs with the acquire above and in shrink().
    if not _options.compare_exchange_strong(none, options, memory_order_acq_rel):
        library().api.ReleaseRunOptions(options)  # another thread was first


cdef void shrink(OrtSession* session, const char** output_names) noexcept nogil:
    """Gives back what the session's arena does not use now, and what the heap does not."""
    cdef OrtValue* output = NULL
    cdef OrtStatus* status = loaded_library().api.Run(
        session, _options.load(memory_order_acquire), NULL, NULL, 0, output_names, 1, &output
    )
    if status != NULL:  # always: it was told to stop
        loaded_library().api.ReleaseStatus(status)
    if output != NULL:
        loaded_library().api.ReleaseValue(output)
    # Blocks of up to 64 MB come from glibc's heap once larger ones were freed: mallopt(3).
    malloc_trim(0)


cdef void move_out_of_arena(OrtValue** outputs, size_t num_outputs) noexcept nogil:
    """Replaces what a run has put out by copies: the smallest output, if it is held, keeps the whole
    region of the arena that it is in. What is no tensor of numbers stays."""
    cdef size_t index
    cdef OrtValue* copy
    for index in range(num_outputs):
        copy = _copy(outputs[index]) if outputs[index] != NULL else NULL
        if copy != NULL:
            loaded_library().api.ReleaseValue(outputs[index])
            outputs[index] = copy


cdef OrtValue* _copy(OrtValue* value) noexcept nogil:
    """A copy in memory of its own; NULL: there is none, or it cannot be copied so."""
    cdef const OrtApi* api = loaded_library().api
    cdef OrtValue* copy = NULL
    cdef OrtStatus* status
    cdef const int64_t* shape = NULL
    cdef void* source = NULL
    cdef void* target = NULL
    cdef size_t rank = 0, num_bytes = 0
    cdef int element_type = 0
    status = api.GetTensorElementTypeAndShapeDataReference(value, &element_type, &shape, &rank)
    if status == NULL and element_type != ELEMENT_STRING:
        status = api.GetTensorSizeInBytes(value, &num_bytes)
        if status == NULL:
            status = api.GetTensorMutableData(value, &source)
        if status == NULL and num_bytes:
            status = api.CreateTensorAsOrtValue(
                loaded_library().allocator, shape, rank, element_type, &copy
            )
        if status == NULL and num_bytes:
            status = api.GetTensorMutableData(copy, &target)
        if target != NULL:
            memcpy(target, source, num_bytes)
    if status != NULL:  # no tensor, or no memory
        api.ReleaseStatus(status)
        if copy != NULL:
            api.ReleaseValue(copy)
        return NULL
    return copy
