from deepsched.runtime.dispatch cimport Dispatcher
from deepsched.runtime.request cimport Request
from libc.stdint cimport uint64_t

cdef uint64_t measure(
    Dispatcher dispatcher, int group, Request request, double seconds
) except? 0
cdef warm(Dispatcher dispatcher, int group, Request request, bint is_aside)
