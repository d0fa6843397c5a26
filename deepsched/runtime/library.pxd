from deepsched.runtime.ort cimport OrtAllocator, OrtApi, OrtEnv, OrtMemoryInfo, OrtStatus

cdef struct Library:
    const OrtApi* api
    OrtEnv* env
    OrtAllocator* allocator
    OrtMemoryInfo* cpu_memory  # for tensors that borrow a caller's buffer

cdef Library* library() except NULL
cdef Library* loaded_library() noexcept nogil
cdef str take_message(OrtStatus* status, int* code)
cdef check(OrtStatus* status)
