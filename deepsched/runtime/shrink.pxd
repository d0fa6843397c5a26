from deepsched.runtime.ort cimport OrtSession

cdef void shrink(OrtSession* session, const char** output_names) noexcept nogil
