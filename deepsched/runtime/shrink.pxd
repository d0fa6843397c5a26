from deepsched.runtime.ort cimport OrtSession, OrtValue

cdef void shrink(OrtSession* session, const char** output_names) noexcept nogil
cdef void move_out_of_arena(OrtValue** outputs, size_t num_outputs) noexcept nogil
