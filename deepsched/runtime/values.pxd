from deepsched.runtime.ort cimport OrtTypeInfo, OrtValue
from libc.stdint cimport int64_t

cimport numpy as cnp

cdef enum:
    MAX_RANK = 64  # numpy's own limit is 64 since 2.0

cdef class ValueInfo:
    cdef readonly str name
    cdef readonly str kind
    cdef readonly tuple shape
    cdef readonly object dtype
    cdef readonly ValueInfo content
    cdef readonly bint has_default
    cdef int onnx_type
    cdef int element_type
    cdef int type_num
    cdef bint borrows
    cdef int rank
    cdef int64_t dims[MAX_RANK]

    cdef fix_first(self, int64_t size)
    cdef OrtValue* to_ort(self, object value, list keepalive, bint check=*) except? NULL
    cdef bint _fits(self, object value, bint check) noexcept
    cdef bint _shape_fits(self, cnp.ndarray array) noexcept
    cdef OrtValue* _borrow(self, cnp.ndarray array) except NULL
    cdef OrtValue* _wrap(self, void* data, size_t num_bytes, cnp.ndarray shaped) except NULL
    cdef OrtValue* _tensor(self, object value, list keepalive) except NULL
    cdef OrtValue* _strings(self, cnp.ndarray array) except NULL
    cdef OrtValue* _sequence(self, object value, list keepalive) except NULL
    cdef OrtValue* _map(self, object value, list keepalive) except NULL

cdef ValueInfo describe_value(str name, const OrtTypeInfo* info)
cdef object output_from(OrtValue* value, ValueInfo info, list borrowed)
