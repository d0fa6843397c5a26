"""numpy arrays, lists, dicts and None <-> ONNX Runtime's values.

Inputs are borrowed: the OrtValue points into the array, which the request keeps alive. Outputs
wrap ORT's memory: the array's base object owns the OrtValue and releases it.
"""

cimport cython
cimport numpy as cnp
from cpython.ref cimport Py_INCREF, PyObject, PyTypeObject
from deepsched.runtime.library cimport check, library, loaded_library
from deepsched.runtime.ort cimport (
    ELEMENT_INT64, ELEMENT_STRING, ELEMENT_UNDEFINED, ONNX_MAP, ONNX_OPTIONAL, ONNX_SEQUENCE,
    ONNX_TENSOR, OrtApi, OrtMapTypeInfo, OrtOptionalTypeInfo, OrtSequenceTypeInfo, OrtSession,
    OrtSessionOptions, OrtStatus, OrtTensorInfo, OrtTypeInfo, OrtValue,
)
from deepsched.runtime.pool cimport fork_generation
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import operator
from collections.abc import Mapping

import numpy as np

from deepsched.errors import InferenceError, InputError, InputTypeError, UnsupportedModelError
from deepsched.runtime import element_types

cdef extern from "numpy/arrayobject.h":
    # Not in numpy's own .pxd. Steals a reference to the dtype.
    object PyArray_NewFromDescr(
        PyTypeObject* subtype, cnp.dtype dtype, int rank, cnp.npy_intp* shape,
        cnp.npy_intp* strides, void* data, int flags, PyObject* finalize_with,
    )

cnp.import_array()

# Since 2.0 as many as our arrays; before, half of that.
cdef size_t NUMPY_MAX_RANK = MAX_RANK if int(np.__version__.split(".")[0]) >= 2 else 32

cdef dict _KINDS = {
    ONNX_TENSOR: "tensor", ONNX_SEQUENCE: "sequence", ONNX_MAP: "map", ONNX_OPTIONAL: "optional",
}
# What carries no dtype of its own, and so takes the model's.
cdef tuple _UNTYPED = (bool, int, float, complex, str, bytes, list, tuple)


# --- What a model's input or output is ----------------------------------------------------------


@cython.final
cdef class ValueInfo:
    """Name, kind, shape and dtype of one input or output of a model.

    Attributes:
        name: its name in the graph.
        kind: "tensor", "sequence", "map" or "optional".
        dtype: numpy dtype of a tensor's elements (object for strings) or of a map's values.
        shape: of a tensor: an int, a symbol's name or None (any size) for each dimension.
        content: of a sequence or an optional: what it holds; of a map: its values.
        has_default: of an input: it may be left out, since the model has a value for it.
    """

    def __init__(self):
        raise TypeError("ValueInfo objects come from a session")

    def __repr__(self):
        what = self.content if self.content is not None else f"{self.dtype}{list(self.shape)}"
        return f"<{self.kind} {self.name!r}: {what}>"

    cdef fix_first(self, int64_t size):
        """Makes `size` its first dimension, which it has, and which was open."""
        self.shape = (size, *self.shape[1:])
        self.dims[0] = size

    cdef OrtValue* to_ort(self, object value, list keepalive, bint check=True) except? NULL:
        """The OrtValue for `value`, to be released by the caller; NULL for one that is left out.

        What it borrows from, if that is not `value` itself, is appended to `keepalive`; both must
        outlive it. Without `check` an array is taken for one of the right dtype and shape.
        """
        if self.onnx_type == ONNX_TENSOR:
            if self.borrows and self._fits(value, check):
                return self._borrow(value)
            if value is None and self.has_default:
                return NULL
            return self._tensor(value, keepalive)
        if self.onnx_type == ONNX_OPTIONAL:
            # ORT takes an input that is not fed as an optional without a value.
            return NULL if value is None else self.content.to_ort(value, keepalive)
        if self.onnx_type == ONNX_SEQUENCE:
            return self._sequence(value, keepalive)
        return self._map(value, keepalive)

    cdef bint _fits(self, object value, bint check) noexcept:
        """Whether `value` is an array that can be borrowed as it is."""
        if not cnp.PyArray_CheckExact(value):
            return False
        cdef cnp.ndarray array = <cnp.ndarray>value
        if not cnp.PyArray_ISCARRAY_RO(array):
            return False
        return not check or (
            cnp.PyArray_TYPE(array) == self.type_num and self._shape_fits(array)
        )

    cdef bint _shape_fits(self, cnp.ndarray array) noexcept:
        cdef int i
        if self.rank == 0:
            return True  # ORT reports an unknown rank as 0 too; it checks real scalars itself
        if cnp.PyArray_NDIM(array) != self.rank:
            return False
        for i in range(self.rank):
            if self.dims[i] >= 0 and cnp.PyArray_DIM(array, i) != self.dims[i]:
                return False
        return True

    cdef OrtValue* _borrow(self, cnp.ndarray array) except NULL:
        return self._wrap(cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array), array)

    cdef OrtValue* _wrap(self, void* data, size_t num_bytes, cnp.ndarray shaped) except NULL:
        cdef OrtValue* out = NULL
        check(library().api.CreateTensorWithDataAsOrtValue(
            library().cpu_memory, data, num_bytes, <const int64_t*>cnp.PyArray_DIMS(shaped),
            cnp.PyArray_NDIM(shaped), self.element_type, &out,
        ))
        return out

    cdef OrtValue* _tensor(self, object value, list keepalive) except NULL:
        """The slow path: a tensor from anything that cannot be borrowed; converts it or raises."""
        cdef cnp.ndarray array = self._to_array(value)
        cdef cnp.ndarray packed
        if not self._shape_fits(array):
            raise InputError(self._shape_complaint(array))
        if self.element_type == ELEMENT_STRING:
            return self._strings(array)
        if self.borrows:
            keepalive.append(array)
            return self._borrow(array)
        packed = element_types.pack(array, element_types.BITS[self.element_type])
        keepalive.append(packed)
        return self._wrap(cnp.PyArray_DATA(packed), cnp.PyArray_NBYTES(packed), array)

    def _to_array(self, value):
        """`value` as a C-contiguous array of our dtype and the machine's byte order."""
        if value is None or isinstance(value, dict):
            raise InputTypeError(f"input {self.name!r}: expected an array, got {value!r:.80}")
        # numpy's own types of text, which it makes of lists, drop NULs at the end.
        is_text = self.element_type == ELEMENT_STRING and isinstance(value, _UNTYPED)
        try:
            array = np.asarray(value, object if is_text else None)
        except (ValueError, TypeError) as error:
            raise InputTypeError(
                f"input {self.name!r}: expected an array of {self._type_name()}, got a "
                f"{type(value).__name__} that numpy cannot read as one: {error}"
            ) from error
        if self.element_type == ELEMENT_STRING:
            if array.dtype.kind == "V" and array.dtype.names is None:
                array = array.view(f"S{array.dtype.itemsize}")  # bytes that are padded with NULs
            if array.dtype.kind not in "OUST":
                raise InputTypeError(self._type_complaint(array))
            return np.asarray(array, dtype=object, order="C")
        if array.dtype != self.dtype:
            swapped = array.dtype.kind in "iufc" and array.dtype.newbyteorder("=") == self.dtype
            untyped = isinstance(value, _UNTYPED) and np.can_cast(
                array.dtype, self.dtype, "same_kind"
            )
            if not swapped and not untyped:
                raise InputTypeError(self._type_complaint(array))
        return np.require(array, self.dtype, ["C_CONTIGUOUS", "ALIGNED"]).view(np.ndarray)

    cdef OrtValue* _strings(self, cnp.ndarray array) except NULL:
        cdef list encoded = []
        for item in array.flat:
            if isinstance(item, str):
                try:
                    item = item.encode("utf-8", "surrogateescape")
                except UnicodeEncodeError as error:
                    raise InputTypeError(
                        f"input {self.name!r}: expected strings that UTF-8 can encode, got "
                        f"{item!r:.80}: {error.reason}"
                    ) from None
            if not isinstance(item, bytes) or b"\0" in item:
                raise InputTypeError(
                    f"input {self.name!r}: expected strings without NUL characters, got {item!r}"
                )
            encoded.append(item)
        cdef const OrtApi* api = library().api
        cdef OrtValue* out = NULL
        cdef size_t i, count = len(encoded)
        cdef const char** texts = <const char**>malloc((count + 1) * sizeof(char*))
        if texts == NULL:
            raise MemoryError(f"no memory for {count} strings")
        try:
            for i in range(count):
                texts[i] = <bytes>encoded[i]
            check(api.CreateTensorAsOrtValue(
                library().allocator, <const int64_t*>cnp.PyArray_DIMS(array),
                cnp.PyArray_NDIM(array), ELEMENT_STRING, &out,
            ))
            if count:
                check(api.FillStringTensor(out, texts, count))
        except BaseException:
            if out != NULL:
                api.ReleaseValue(out)
            raise
        finally:
            free(texts)
        return out

    cdef OrtValue* _sequence(self, object value, list keepalive) except NULL:
        if not isinstance(value, (list, tuple)):
            raise InputTypeError(
                f"input {self.name!r}: expected a list of {self.content._type_name()} values, got "
                f"{type(value).__name__}"
            )
        if not value:
            if self.content.onnx_type != ONNX_TENSOR:
                raise InputTypeError(
                    f"input {self.name!r}: expected a list with at least one "
                    f"{self.content._type_name()}, since ONNX Runtime makes no empty ones of them"
                )
            return _empty_sequence(self.content.element_type)
        return _compose([(self.content, item) for item in value], ONNX_SEQUENCE, keepalive)

    cdef OrtValue* _map(self, object value, list keepalive) except NULL:
        if not isinstance(value, Mapping) or not value:
            raise InputTypeError(
                f"input {self.name!r}: expected a dict with at least one entry, got {value!r:.80}"
            )
        cdef ValueInfo key_info = _tensor_info(self.name, self.element_type, (None,))
        keys = self._parts_of_map("key", key_info, value.keys())
        items = self._parts_of_map("value", self.content, value.values())
        return _compose([(key_info, keys), (self.content, items)], ONNX_MAP, keepalive)

    def _parts_of_map(self, what, ValueInfo info, parts):
        """Keys or values, as an array of what the model takes: numbers of Python have no type, and
        those of a dict may differ."""
        array = np.empty(len(parts), info.dtype)
        convert = _CONVERSIONS[info.dtype.kind]
        with np.errstate(over="ignore"):  # infinite in float32
            for i, part in enumerate(parts):
                try:
                    array[i] = convert(part)
                except (TypeError, ValueError, OverflowError):
                    raise InputTypeError(
                        f"input {self.name!r}: expected a {self._type_name()}, got the {what} "
                        f"{part!r:.80} ({type(part).__name__})"
                    ) from None
        return array

    def _type_name(self):
        if self.onnx_type == ONNX_MAP:
            key_name = element_types.name_of(self.element_type)
            return f"dict of {key_name} to {self.content._type_name()}"
        return self.content._type_name() if self.content else element_types.name_of(
            self.element_type
        )

    def _type_complaint(self, array):
        convertible = self.dtype.kind in "biuf" and array.dtype.kind in "biufc"
        hint = f"; convert it with .astype(numpy.{self.dtype})" if convertible else ""
        return f"input {self.name!r}: expected {self._type_name()}, got {array.dtype}{hint}"

    def _shape_complaint(self, array):
        expected, got = list(self.shape), list(array.shape)
        message = f"input {self.name!r}: expected shape {_shape_text(expected)}, got {got}"
        if self.has_default:
            return f"{message}. Give it the shape of its default, or leave it out"
        if len(expected) == len(got) and isinstance(expected[0], int) and got[0] != expected[0]:
            others = zip(expected[1:], got[1:])
            if all(want == have or not isinstance(want, int) for want, have in others):
                message += (
                    f". This engine takes batches of {expected[0]} only: recompile with "
                    "batch_size=None for any batch that the model's file takes"
                    + (f", or batch_size={got[0]}" if got[0] else "")
                )
                return message
        if len(expected) == len(got) + 1 and expected[0] in (1, None):
            return f"{message}. A single item needs a first dimension of 1: x[None]"
        if len(expected) != len(got):
            return f"{message}. Give it {len(expected)} dimensions"
        return (
            f"{message}. Give it that shape, or recompile with input_shapes= for another, where "
            "the model allows it"
        )


def _shape_text(shape):
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _to_text(value):
    if isinstance(value, (str, bytes)):
        return value
    raise TypeError


def _to_float(value):
    if isinstance(value, (str, bytes, bytearray)):  # which float() would read
        raise TypeError
    return float(value)


# What an entry of a map is made of it, by kind of dtype.
cdef dict _CONVERSIONS = {"O": _to_text, "f": _to_float, "i": operator.index}


cdef OrtValue* _compose(list parts, int onnx_type, list keepalive) except NULL:
    """A sequence or a map of (info, value) pairs. Its tensors own their memory: the model may
    hand them out again as parts of an output, which outlives the caller's arrays."""
    cdef const OrtApi* api = library().api
    cdef size_t i, made = 0, count = len(parts)
    cdef OrtValue* out = NULL
    cdef OrtValue** values = <OrtValue**>malloc(count * sizeof(OrtValue*))
    if values == NULL:
        raise MemoryError(f"no memory for a sequence of {count}")
    cdef ValueInfo info
    try:
        for info, item in parts:
            values[made] = _own(info, info.to_ort(item, keepalive))
            made += 1
        check(api.CreateValue(values, count, onnx_type, &out))
    finally:
        for i in range(made):
            api.ReleaseValue(values[i])
        free(values)
    return out


cdef OrtValue* _empty_sequence(int element_type) except NULL:
    """CreateValue refuses a sequence without elements, so a model of one node makes it: about
    0.2 ms, which only callers with empty sequences pay."""
    from onnx import helper

    cdef const OrtApi* api = library().api
    cdef OrtSession* session = NULL
    cdef OrtValue* out = NULL
    cdef const char* name = b"empty"
    output = helper.make_tensor_sequence_value_info("empty", element_type, None)
    node = helper.make_node("SequenceEmpty", [], ["empty"], dtype=element_type)
    graph = helper.make_graph([node], "empty_sequence", [], [output])
    cdef bytes model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8
    ).SerializeToString()
    cdef OrtSessionOptions* options = NULL
    try:
        check(api.CreateSessionOptions(&options))
        check(api.SetIntraOpNumThreads(options, 1))
        check(api.CreateSessionFromArray(
            library().env, <const char*>model, len(model), options, &session
        ))
        check(api.Run(session, NULL, NULL, NULL, 0, &name, 1, &out))
    finally:
        api.ReleaseSessionOptions(options)
        api.ReleaseSession(session)
    return out


cdef OrtValue* _own(ValueInfo info, OrtValue* value) except NULL:
    """`value` with memory of its own, and released if it only borrowed it."""
    cdef const OrtApi* api = library().api
    cdef OrtTensorInfo* shape = NULL
    cdef OrtValue* out = NULL
    cdef void* source = NULL
    cdef void* target = NULL
    cdef size_t rank = 0, count = 0
    cdef int64_t dims[MAX_RANK]
    if info.onnx_type != ONNX_TENSOR or info.element_type == ELEMENT_STRING:
        return value
    try:
        check(api.GetTensorTypeAndShape(value, &shape))
        check(api.GetDimensionsCount(shape, &rank))
        check(api.GetDimensions(shape, dims, rank))
        check(api.GetTensorShapeElementCount(shape, &count))
        check(api.CreateTensorAsOrtValue(
            library().allocator, dims, rank, info.element_type, &out
        ))
        check(api.GetTensorMutableData(value, &source))
        check(api.GetTensorMutableData(out, &target))
        memcpy(target, source, _num_bytes(info.element_type, count))
    finally:
        if shape != NULL:
            api.ReleaseTensorTypeAndShapeInfo(shape)
        api.ReleaseValue(value)
    return out


cdef size_t _num_bytes(int element_type, size_t count) except? 0:
    bits = element_types.BITS.get(element_type)
    if bits:
        return (count * bits + 7) // 8
    return count * element_types.dtype_of(element_type).itemsize


# --- Describing ---------------------------------------------------------------------------------


cdef ValueInfo _new_info(str name, int onnx_type):
    cdef ValueInfo info = ValueInfo.__new__(ValueInfo)
    info.name = name
    info.onnx_type = onnx_type
    info.kind = _KINDS.get(onnx_type)
    info.shape = ()
    info.type_num = -1
    if info.kind is None:
        raise UnsupportedModelError(
            f"{name!r} has ONNX type {onnx_type} (opaque or sparse), which has no Python form; "
            "tensors, sequences, maps and optionals have"
        )
    return info


cdef ValueInfo _tensor_info(str name, int element_type, tuple shape):
    cdef ValueInfo info = _new_info(name, ONNX_TENSOR)
    cdef int i
    info.element_type = element_type
    info.dtype = element_types.dtype_of(element_type)
    if info.dtype is None:
        raise UnsupportedModelError(
            f"{name!r} has elements of type {element_types.name_of(element_type)}, which numpy "
            "lacks; pip install ml_dtypes to use this model"
        )
    if <size_t>len(shape) > NUMPY_MAX_RANK:
        raise UnsupportedModelError(
            f"{name!r} has {len(shape)} dimensions; numpy arrays have {NUMPY_MAX_RANK} at most"
        )
    info.shape = shape
    info.rank = len(shape)
    for i, size in enumerate(shape):
        info.dims[i] = size if isinstance(size, int) else -1
    info.type_num = info.dtype.num
    info.borrows = element_type != ELEMENT_STRING and element_type not in element_types.BITS
    return info


cdef ValueInfo describe_value(str name, const OrtTypeInfo* type_info):
    """What `type_info` (still the caller's) says of the value `name`."""
    cdef const OrtApi* api = library().api
    cdef const OrtTensorInfo* tensor = NULL
    cdef const OrtSequenceTypeInfo* sequence = NULL
    cdef const OrtMapTypeInfo* mapping = NULL
    cdef const OrtOptionalTypeInfo* optional = NULL
    cdef OrtTypeInfo* content = NULL
    cdef ValueInfo info
    cdef int onnx_type = 0, element_type = 0
    check(api.GetOnnxTypeFromTypeInfo(type_info, &onnx_type))
    if onnx_type == ONNX_TENSOR:
        check(api.CastTypeInfoToTensorInfo(type_info, &tensor))
        check(api.GetTensorElementType(tensor, &element_type))
        return _tensor_info(name, element_type, _read_shape(tensor))
    info = _new_info(name, onnx_type)
    if onnx_type == ONNX_SEQUENCE:
        check(api.CastTypeInfoToSequenceTypeInfo(type_info, &sequence))
        check(api.GetSequenceElementType(sequence, &content))
    elif onnx_type == ONNX_MAP:
        check(api.CastTypeInfoToMapTypeInfo(type_info, &mapping))
        check(api.GetMapKeyType(mapping, &info.element_type))
        check(api.GetMapValueType(mapping, &content))
    else:
        check(api.CastTypeInfoToOptionalTypeInfo(type_info, &optional))
        check(api.GetOptionalContainedTypeInfo(optional, &content))
    try:
        info.content = describe_value(name, content)
        info.dtype = info.content.dtype
    finally:
        api.ReleaseTypeInfo(content)
    return info


cdef tuple _read_shape(const OrtTensorInfo* tensor):
    cdef const OrtApi* api = library().api
    cdef size_t i, rank = 0
    cdef int64_t dims[MAX_RANK]
    cdef const char* symbols[MAX_RANK]
    check(api.GetDimensionsCount(tensor, &rank))
    if rank > MAX_RANK:
        return (None,) * rank
    check(api.GetDimensions(tensor, dims, rank))
    check(api.GetSymbolicDimensions(tensor, symbols, rank))
    shape = []
    for i in range(rank):
        if dims[i] >= 0:
            shape.append(dims[i])
        else:
            shape.append(symbols[i].decode(errors="replace") or None)
    return tuple(shape)


# --- Outputs ------------------------------------------------------------------------------------


@cython.final
@cython.internal
@cython.freelist(64)
cdef class _ValueOwner:
    """The base object of an output array: releases ORT's value when the last view dies."""
    cdef OrtValue* value
    cdef uint32_t generation

    def __dealloc__(self):
        # A forked child leaks: the parent's threads may have held ORT's allocator locked.
        if self.value != NULL and self.generation == fork_generation():
            loaded_library().api.ReleaseValue(self.value)


cdef object output_from(OrtValue* value, ValueInfo info, list borrowed):
    """The Python form of an output, whose OrtValue this takes over (NULL gives None).

    `info`: what the model says of it. `borrowed`: the arrays that the inputs borrow from, among
    other values.
    """
    # Most outputs are numeric tensors: no object on the way but the array and its base.
    cdef const OrtApi* api = loaded_library().api
    cdef OrtStatus* status
    cdef const int64_t* dims = NULL
    cdef size_t rank = 0
    cdef int element_type = 0
    cdef void* data = NULL
    cdef _ValueOwner owner
    if value == NULL or not info.borrows:
        return _from_ort(value, borrowed)
    status = api.GetTensorElementTypeAndShapeDataReference(value, &element_type, &dims, &rank)
    if status == NULL:
        status = api.GetTensorMutableData(value, &data)
    if status != NULL:
        api.ReleaseStatus(status)
        return _from_ort(value, borrowed)
    if data == NULL or element_type != info.element_type:
        return _from_ort(value, borrowed)
    owner = _ValueOwner.__new__(_ValueOwner)
    owner.value = value
    owner.generation = fork_generation()
    _check_rank(rank)
    return _view(owner, data, <cnp.dtype>info.dtype, dims, <int>rank, borrowed)


cdef int _check_rank(size_t rank) except -1:
    """A rank that only the run decides may be more than numpy, and our arrays, have room for."""
    if rank > NUMPY_MAX_RANK:
        raise InferenceError(
            f"an output has {rank} dimensions; numpy arrays have {NUMPY_MAX_RANK} at most. Reshape "
            "it inside the model"
        )
    return 0


cdef object _view(
    _ValueOwner owner, void* data, cnp.dtype dtype, const int64_t* dims, int rank, list borrowed
):
    Py_INCREF(dtype)
    cdef cnp.ndarray array = PyArray_NewFromDescr(
        <PyTypeObject*>cnp.ndarray, dtype, rank, <cnp.npy_intp*>dims, NULL, data,
        cnp.NPY_ARRAY_CARRAY, NULL,
    )
    if _is_borrowed(data, borrowed):
        # A graph whose output is its input hands the caller's own buffer back; ORT's value does
        # not keep that alive.
        return array.copy()
    cnp.set_array_base(array, owner)
    return array


cdef object _from_ort(OrtValue* value, list borrowed):
    cdef int has_value = 0, onnx_type = 0
    if value == NULL:
        return None
    cdef _ValueOwner owner = _ValueOwner.__new__(_ValueOwner)
    owner.value = value
    owner.generation = fork_generation()
    cdef const OrtApi* api = library().api
    check(api.GetValueType(value, &onnx_type))
    if onnx_type == ONNX_TENSOR:
        return _array_from(owner, borrowed)
    check(api.HasValue(value, &has_value))
    if not has_value:
        return None
    if onnx_type == ONNX_SEQUENCE:
        return _parts(value, borrowed)
    if onnx_type == ONNX_MAP:
        keys, items = _parts(value, borrowed)
        return dict(zip(keys.tolist(), items.tolist()))
    raise UnsupportedModelError(f"an output of ONNX type {onnx_type} has no Python form")


cdef list _parts(OrtValue* value, list borrowed):
    """The elements of a sequence; keys and values of a map."""
    cdef const OrtApi* api = library().api
    cdef size_t i, count = 0
    cdef OrtValue* part
    check(api.GetValueCount(value, &count))
    parts = []
    for i in range(count):
        part = NULL
        check(api.GetValue(value, i, library().allocator, &part))
        parts.append(_from_ort(part, borrowed))
    return parts


cdef object _array_from(_ValueOwner owner, list borrowed):
    cdef const OrtApi* api = library().api
    cdef OrtTensorInfo* info = NULL
    cdef int element_type = 0
    cdef size_t rank = 0, count = 0
    cdef int64_t dims[MAX_RANK]
    cdef void* data = NULL
    check(api.GetTensorTypeAndShape(owner.value, &info))
    try:
        check(api.GetTensorElementType(info, &element_type))
        check(api.GetDimensionsCount(info, &rank))
        _check_rank(rank)
        check(api.GetDimensions(info, dims, rank))
        check(api.GetTensorShapeElementCount(info, &count))
    finally:
        api.ReleaseTensorTypeAndShapeInfo(info)
    shape = tuple([dims[i] for i in range(<int>rank)])
    if element_type == ELEMENT_STRING:
        return _strings_from(owner.value, count, shape)
    check(api.GetTensorMutableData(owner.value, &data))
    cdef cnp.dtype dtype = element_types.dtype_of(element_type)
    bits = element_types.BITS.get(element_type)
    if count == 0:
        return np.empty(shape, dtype)
    if bits:
        packed = np.frombuffer((<char*>data)[:(count * bits + 7) // 8], np.uint8)
        return element_types.unpack(packed, bits, shape, dtype)
    return _view(owner, data, dtype, dims, <int>rank, borrowed)


cdef bint _is_borrowed(void* data, list borrowed) noexcept:
    cdef cnp.ndarray array
    cdef uintptr_t start
    for value in borrowed:
        if cnp.PyArray_Check(value):
            array = <cnp.ndarray>value
            start = <uintptr_t>cnp.PyArray_DATA(array)
            if start <= <uintptr_t>data < start + <uintptr_t>cnp.PyArray_NBYTES(array):
                return True
    return False


cdef object _strings_from(OrtValue* value, size_t count, tuple shape):
    cdef const OrtApi* api = library().api
    cdef size_t length = 0
    array = np.empty(count, dtype=object)
    if count == 0:
        return array.reshape(shape)
    check(api.GetStringTensorDataLength(value, &length))
    text = bytearray(length)
    offsets = np.empty(count + 1, dtype=np.uintp)
    cdef char* start = text
    check(api.GetStringTensorContent(
        value, start, length, <size_t*>cnp.PyArray_DATA(offsets), count
    ))
    offsets[count] = length
    for i in range(count):
        piece = bytes(text[offsets[i]:offsets[i + 1]])
        array[i] = piece.decode("utf-8", "surrogateescape")
    return array.reshape(shape)
