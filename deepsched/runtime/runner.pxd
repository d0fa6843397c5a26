from deepsched.runtime.batching cimport Batch
from deepsched.runtime.elastic cimport Elastic
from deepsched.runtime.request cimport ModelState, RequestState
from deepsched.runtime.stopping cimport RunSlots
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    # A run this short is not pinned if its caller is on the group's first CPU already. Setting the
    # affinity and putting it back costs 1.6 us, about as much as the run; the kernel hardly moves a
    # thread within microseconds, and ORT hardly uses its other threads.
    SHORT_RUN_NS = 30_000

cdef class Runner:
    cdef RunSlots slots
    cdef Elastic elastic  # None: every request takes one stream
    cdef bint is_elastic

    cdef void run_batch(self, Batch* batch, int group, uint64_t kept) noexcept nogil
    cdef void run(self, RequestState* request, int group, uint64_t kept) noexcept nogil
    cdef bint run_together(self, Batch* batch, int group, uint64_t kept) noexcept nogil
    cdef void run_each(self, Batch* batch, int group, uint64_t kept) noexcept nogil
    cdef void call_ort(self, RequestState* request, int group) noexcept nogil
    cdef void learn_length(
        self, RequestState* request, int group, double company, uint64_t alone_ns
    ) noexcept nogil
    cdef void learn_class_of(self, RequestState* request, int group, uint64_t length) noexcept nogil
    cdef int width_of(self, int group) noexcept nogil
    cdef void learn_trial(
        self, RequestState* request, int group, double company, uint64_t alone_ns
    ) noexcept nogil
    cdef uint32_t num_running(self, ModelState* model, uint32_t* num_units) noexcept nogil

cdef bint is_short(ModelState* model) noexcept nogil
