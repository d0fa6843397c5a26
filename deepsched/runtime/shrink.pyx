"""Giving back what runs have taken: ONNX Runtime's arenas grow, and keep what they have.

README.md, "Giving memory back".

ORT (1.8 and later) shrinks the arena of a session at the end of a run that asks for it, and in no
other way that its C API has. So this is a run: without inputs, and told to stop before it begins,
so that no operator runs and no thread is needed. It frees the regions of which nothing is in use,
under the arena's lock; so other runs of the session may be under way, and keep what they use.
"""

from deepsched.runtime.library cimport check, library, loaded_library
from deepsched.runtime.ort cimport OrtRunOptions, OrtStatus, OrtValue

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

# For all sessions: it is only read.
cdef OrtRunOptions* _options = NULL


def prepare_shrinking() -> None:
    """To be called before `shrink`."""
    global _options
    cdef OrtRunOptions* options = NULL
    if _options != NULL:
        return
    check(library().api.CreateRunOptions(&options))
    check(library().api.AddRunConfigEntry(
        options, b"memory.enable_memory_arena_shrinkage", b"cpu:0"
    ))
    check(library().api.RunOptionsSetTerminate(options))
    _options = options


cdef void shrink(OrtSession* session, const char** output_names) noexcept nogil:
    """Gives back what the session's arena does not use now, and what the heap does not."""
    cdef OrtValue* output = NULL
    cdef OrtStatus* status = loaded_library().api.Run(
        session, _options, NULL, NULL, 0, output_names, 1, &output
    )
    if status != NULL:  # always: it was told to stop
        loaded_library().api.ReleaseStatus(status)
    if output != NULL:
        loaded_library().api.ReleaseValue(output)
    # Blocks of up to 64 MB come from glibc's heap once larger ones were freed: mallopt(3).
    malloc_trim(0)
