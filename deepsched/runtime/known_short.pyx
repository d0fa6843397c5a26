"""Which inputs are known to run for a short time: those that the main thread may run itself.

README.md, "A request's life". Only a run with the same shapes tells how long this one takes; and
where an input is so small that it may say how much there is to do (a loop's count, a length, a
size, a scale), only one whose numbers were at least as large.
"""

cimport cython
cimport numpy as cnp
from libc.math cimport fabs, frexp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed

cnp.import_array()

cdef extern from *:
    int num_leading_zeros "__builtin_clzll"(unsigned long long) noexcept nogil

# A signal is to be heard within 0.2 s. Numbers of one magnitude differ by up to a factor of two,
# and a run that had several streams may have one the next time.
cdef uint64_t SHORT_NS = 50_000_000
cdef uint64_t SHORT_ON_ONE_STREAM_NS = 200_000_000

# An input with more elements is data.
cdef Py_ssize_t MAX_NUMBERS = 8

# Of numbers that a glance does not tell: bfloat16, complex and the like.
cdef uint64_t UNKNOWN = 1 << 20

# A key: 56 bits of a hash of the shapes, and the magnitude.
cdef uint64_t MAGNITUDE = 0xFF
cdef uint64_t LEFT_OUT = 0xC4CEB9FE1A85EC53u  # random: in the place of an input's shape


@cython.boundscheck(False)
@cython.wraparound(False)
cdef uint64_t key_of(list inputs) except? 0:
    """The class of a request's inputs; 0 if a glance does not tell it."""
    cdef uint64_t shapes = LEFT_OUT, magnitude = 0
    cdef cnp.ndarray array
    cdef Py_ssize_t i
    cdef int axis
    for i in range(len(inputs)):
        value = inputs[i]
        if value is None:  # left out, as no array is
            shapes = mixed(shapes, LEFT_OUT)
            continue
        if not cnp.PyArray_CheckExact(value):
            return 0
        array = <cnp.ndarray>value
        if not cnp.PyArray_ISCARRAY_RO(array) or cnp.PyArray_TYPE(array) == cnp.NPY_OBJECT:
            return 0
        shapes = mixed(shapes, cnp.PyArray_NDIM(array))
        for axis in range(cnp.PyArray_NDIM(array)):
            shapes = mixed(shapes, cnp.PyArray_DIM(array, axis))
        if cnp.PyArray_SIZE(array) <= MAX_NUMBERS:
            magnitude = max(magnitude, _magnitude(array))
            if magnitude >= UNKNOWN:
                return 0
    return (shapes & ~MAGNITUDE) | min(magnitude, MAGNITUDE) or 1


cdef uint64_t _magnitude(cnp.ndarray array) noexcept:
    """How many bits the numbers have, all together: that of their product, which is the most that
    they can stand for."""
    cdef void* data = cnp.PyArray_DATA(array)
    cdef int type_num = cnp.PyArray_TYPE(array)
    cdef uint64_t num_bits = 0
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(array)):
        if type_num == cnp.NPY_INT64:
            num_bits += _integer_bits((<int64_t*>data)[i])
        elif type_num == cnp.NPY_INT32:
            num_bits += _integer_bits((<int32_t*>data)[i])
        elif type_num == cnp.NPY_FLOAT32:
            num_bits += _float_bits((<float*>data)[i])
        elif type_num == cnp.NPY_FLOAT64:
            num_bits += _float_bits((<double*>data)[i])
        elif type_num == cnp.NPY_FLOAT16:
            num_bits += _half_bits((<uint16_t*>data)[i])
        elif type_num == cnp.NPY_INT16:
            num_bits += _integer_bits((<int16_t*>data)[i])
        elif type_num == cnp.NPY_INT8:
            num_bits += _integer_bits((<int8_t*>data)[i])
        elif type_num == cnp.NPY_UINT64:
            num_bits += _integer_bits(<int64_t>((<uint64_t*>data)[i] >> 1))
        elif type_num == cnp.NPY_UINT32:
            num_bits += _integer_bits((<uint32_t*>data)[i])
        elif type_num == cnp.NPY_UINT16:
            num_bits += _integer_bits((<uint16_t*>data)[i])
        elif type_num == cnp.NPY_UINT8 or type_num == cnp.NPY_BOOL:
            num_bits += _integer_bits((<uint8_t*>data)[i])
        else:
            return UNKNOWN
    return num_bits


cdef uint64_t _integer_bits(int64_t number) noexcept:
    cdef uint64_t size = <uint64_t>number if number >= 0 else 0 - <uint64_t>number
    return 64 - num_leading_zeros(size) if size else 0


cdef uint64_t _float_bits(double number) noexcept:
    """A step of 1e-9 may mean as much work as a limit of 1e9."""
    cdef int exponent = 0
    if not 0 < fabs(number) < 1e30:
        return 0 if number == 0 else 100
    frexp(number, &exponent)
    return <uint64_t>(exponent if exponent >= 0 else -exponent)


cdef uint64_t _half_bits(uint16_t half) noexcept:
    """As _float_bits."""
    cdef int exponent = half >> 10 & 31
    if half & 0x7FFF == 0:
        return 0
    return 100 if exponent == 31 else <uint64_t>(exponent - 14 if exponent >= 14 else 14 - exponent)


cdef bint is_known_short(InputClass* classes, uint64_t key) noexcept nogil:
    """Whether inputs of the same shapes, and of this magnitude or a higher one, ran short."""
    # relaxed, here and below: one word, through which nothing is read.
    cdef uint64_t known = classes[key >> 58].key.load(memory_order_relaxed)
    return key != 0 and (known ^ key) & ~MAGNITUDE == 0 and key & MAGNITUDE <= known & MAGNITUDE


cdef void learn_class(
    InputClass* classes, uint64_t key, uint64_t length_ns, int num_streams
) noexcept nogil:
    """A run with inputs of this class has taken so long, on so many streams together."""
    note_class(
        classes, key, length_ns < SHORT_NS and length_ns * num_streams < SHORT_ON_ONE_STREAM_NS
    )


cdef void note_class(InputClass* classes, uint64_t key, bint is_short) noexcept nogil:
    """A run with inputs of this class was short, or was not."""
    cdef InputClass* place = &classes[key >> 58]
    if key and is_known_short(classes, key) != is_short:
        # Of two that learn at once, one counts. What is known of another class goes: its next run
        # in the main thread is left to a worker once more.
        place.key.store(key if is_short else 0, memory_order_relaxed)
