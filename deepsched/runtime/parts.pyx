"""Items of one thread, of a map or of an event loop, as parts of one request: joined when it is
started, its outputs cut again.

README.md, "Batching".
"""

cimport numpy as cnp
from cpython.ref cimport Py_INCREF, PyObject, PyTypeObject
from deepsched.runtime.batch_plan cimport BatchPlan, expected_ns, units_of
from deepsched.runtime.inbox cimport Inbox
from deepsched.runtime.known_short cimport is_known_short, key_of
from deepsched.runtime.model cimport Model
from deepsched.runtime.request cimport FAILED, INSTANT_NS, Request
from deepsched.runtime.values cimport MAX_RANK, ValueInfo
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed

cdef extern from "numpy/arrayobject.h":
    # Not in numpy's own .pxd. Steals a reference to the dtype.
    object PyArray_NewFromDescr(
        PyTypeObject* subtype, cnp.dtype dtype, int rank, cnp.npy_intp* shape,
        cnp.npy_intp* strides, void* data, int flags, PyObject* finalize_with,
    )

cnp.import_array()

# Results of one caller may share this much memory, of which any one keeps all alive.
cdef Py_ssize_t MAX_SHARED = 65536


def start_many(
    Model model not None, source, in_order, Inbox inbox not None, sent, int most, priority,
    bint check_inputs, bint shrinks,
) -> int:
    """Starts the next items of the iterator `source`, `most` at most, for a producer that waits for
    room, with the tag False; appends the requests to `sent`. Returns how many items there were: fewer
    than `most`, if the source has no more.

    While others wait already, items that may run together are made one request, of several parts.
    Nothing comes between a start and its append. `in_order`: makes a list of inputs of an item that is
    none. Raises what the source, `in_order` and `start` do, after what came before has been started.
    """
    cdef list inputs, parts = []
    cdef int i = 0
    cdef BatchPlan* plan = model.state.plan.load(memory_order_acquire)  # pairs with set_batching
    cdef Py_ssize_t most_units = 1 if shrinks else model.most_together
    cdef bint may_join
    try:
        while i < most:
            try:
                item = next(source)
            except StopIteration:
                break
            # A copy: its iterator may fill one list anew for each item.
            inputs = list(<list>item) if type(item) is list else in_order(item)
            i += 1
            may_join = most_units > 1 and fits(model, parts[0] if parts else inputs, inputs)
            if parts and not may_join:
                whole, parts = parts, []  # first: what raises is not started again
                start_parts(model, whole, inbox, sent, priority)
                may_join = fits(model, inputs, inputs)
            if not may_join:
                sent.append(model.start(
                    inputs, inbox, False, None, priority, check_inputs, True, True, shrinks
                ))
                continue
            parts.append(inputs)
            if (
                (len(parts) + 1) * units_in(plan, inputs) > most_units
                # relaxed: a hint. Whoever frees finds something, or gets this at once.
                or not model.dispatcher.backlog.places.load(memory_order_relaxed)
            ):
                whole, parts = parts, []
                start_parts(model, whole, inbox, sent, priority)
    finally:
        if parts:
            start_parts(model, parts, inbox, sent, priority)
    return i


def start_together(
    Model model not None, list items not None, Inbox inbox not None, uint64_t submitted_ns
) -> tuple[Request | None, int]:
    """Starts the first of `items`, and with it those that may follow it in a run of microseconds, as
    one request, which is run here and now if a stream is free. Never waits.

    `submitted_ns`: of the monotonic clock, since when they wait. Returns the request, and how many
    items it is made of. None: nothing has been started, as nothing may go with the first, or there is
    no room, or the model has moved. Raises what `start` does; nothing has been started then either.
    """
    cdef BatchPlan* plan = model.state.plan.load(memory_order_acquire)  # pairs with set_batching
    cdef Py_ssize_t num_units = 0, num_parts = 0, most_units = model.most_together
    cdef list inputs, parts = []
    cdef Request request
    cdef double run_ns
    for inputs in items:
        if most_units < 2 or not fits(model, parts[0] if parts else inputs, inputs):
            break
        num_units += units_in(plan, inputs)
        if num_units > most_units or not is_known_short(
            model.state.instant_classes, key_of(inputs)
        ):
            break
        run_ns = expected_ns(plan, <uint32_t>num_units)
        # Not at the first size that takes too long: what is known of one size may be an accident.
        if run_ns > 2 * INSTANT_NS:
            break
        parts.append(inputs)
        if run_ns <= INSTANT_NS:
            num_parts = len(parts)
    if num_parts < 2:
        return None, 1
    del parts[num_parts:]
    request = prepare_parts(model, parts, 0)
    request.state.submitted_ns = submitted_ns
    request.state.inputs_key = key_of(<list>parts[0])
    request.is_loops = True
    started = model.start_prepared(request, inbox, None, False, True, True)
    return (None if started is NotImplemented else started), len(parts)


cdef bint fits(Model model, list first, list inputs) except -1:
    """Whether one request may be made of both: arrays that need no conversion, of one shape."""
    cdef ValueInfo info
    cdef cnp.ndarray array
    cdef Py_ssize_t i, num_items = 0, num_inputs = len(model.inputs)
    if len(inputs) != num_inputs:
        return False
    for i in range(num_inputs):
        info = <ValueInfo>(<list>model.inputs)[i]
        if not info.borrows or not info._fits(inputs[i], True):
            return False
        array = <cnp.ndarray>inputs[i]
        if cnp.PyArray_NDIM(array) == 0 or not same_shape(<cnp.ndarray>first[i], array):
            return False
        if i == 0:
            num_items = cnp.PyArray_DIM(array, 0)
        if cnp.PyArray_DIM(array, 0) != num_items:
            return False
    return num_items > 0


cdef uint32_t units_in(BatchPlan* plan, list inputs) except 0:
    """What the items in these arrays, which `fits` has seen, count for in a run."""
    cdef Py_ssize_t num_items = cnp.PyArray_DIM(<cnp.ndarray>inputs[0], 0)
    cdef uint64_t item_size = 0
    for array in inputs:
        item_size += cnp.PyArray_SIZE(<cnp.ndarray>array) // num_items
    return units_of(plan, num_items, item_size)


cdef bint same_shape(cnp.ndarray one, cnp.ndarray other) noexcept:
    cdef int axis
    if one is other:
        return True
    if cnp.PyArray_NDIM(one) != cnp.PyArray_NDIM(other):
        return False
    for axis in range(cnp.PyArray_NDIM(one)):
        if cnp.PyArray_DIM(one, axis) != cnp.PyArray_DIM(other, axis):
            return False
    return True


cdef start_parts(Model model, list parts, Inbox inbox, object sent, object priority):
    """Starts one request of items that fit together."""
    cdef list inputs
    started = model.start_prepared(
        prepare_parts(model, parts, priority), inbox, False, True, True
    )
    if started is not NotImplemented:
        sent.append(started)
        return
    # The model has moved to streams where less may run together, or nothing.
    for inputs in parts:
        sent.append(model.successor().start(inputs, inbox, False, None, priority, False, True, True))


cdef Request prepare_parts(Model model, list parts, object priority):
    """One request of items that fit together."""
    cdef Request request
    cdef list inputs = <list>parts[0]
    if len(parts) > 1:
        inputs = [joined(parts, i) for i in range(len(model.inputs))]
    request = model.prepare(inputs, None, priority, False)  # they have been checked
    if len(parts) > 1:
        request.state.num_parts = <uint32_t>len(parts)
        request.state.num_items = <uint32_t>cnp.PyArray_DIM(<cnp.ndarray>inputs[0], 0)
        request.state.num_units = units_in(
            model.state.plan.load(memory_order_acquire), inputs  # pairs with set_batching
        )
        request.parts_inputs = parts
    return request


cdef cnp.ndarray joined(list parts, Py_ssize_t index):
    """The arrays at `index` of each of the parts, behind each other."""
    cdef cnp.ndarray part, first = <cnp.ndarray>(<list>parts[0])[index]
    cdef cnp.ndarray whole = new_array(first, NULL, len(parts), 1)
    cdef char* data = <char*>cnp.PyArray_DATA(whole)
    cdef Py_ssize_t num_bytes = cnp.PyArray_NBYTES(first)
    for inputs in parts:
        part = <cnp.ndarray>(<list>inputs)[index]
        memcpy(data, cnp.PyArray_DATA(part), num_bytes)
        data += num_bytes
    return whole


def outputs_of_parts(Request request not None) -> list | None:
    """The outputs of each part of a request that has several, as Request.outputs.

    None: something failed, of all or of one. The parts are to run one by one.
    """
    cdef list by_output, parts = []
    cdef uint32_t i
    # relaxed: whoever calls has seen it end.
    if request.state.stage.load(memory_order_relaxed) == FAILED:
        return None
    by_output = [cut(whole, request.state.num_parts) for whole in request.outputs()]
    for i in range(request.state.num_parts):
        parts.append([<object>(<list>of_output)[i] for of_output in by_output])
    return parts


cdef list cut(cnp.ndarray whole, uint32_t num_parts):
    """The equal parts of an array, along its first dimension. Views, if these keep little alive."""
    cdef cnp.ndarray part
    cdef char* data = <char*>cnp.PyArray_DATA(whole)
    cdef Py_ssize_t num_bytes = cnp.PyArray_NBYTES(whole)
    cdef list parts = []
    cdef uint32_t i
    for i in range(num_parts):
        part = new_array(whole, data + i * (num_bytes // num_parts), 1, num_parts)
        if num_bytes > MAX_SHARED:
            part = part.copy()
        else:
            cnp.set_array_base(part, whole)
        parts.append(part)
    return parts


cdef cnp.ndarray new_array(cnp.ndarray like, void* data, Py_ssize_t times, Py_ssize_t divisor):
    """An array over `data` (NULL: memory of its own) that has `times / divisor` as many items."""
    cdef cnp.npy_intp dims[MAX_RANK]
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(like)):
        dims[axis] = cnp.PyArray_DIM(like, axis)
    dims[0] = dims[0] * times // divisor
    Py_INCREF(like.dtype)
    return PyArray_NewFromDescr(
        <PyTypeObject*>cnp.ndarray, <cnp.dtype>like.dtype, cnp.PyArray_NDIM(like), dims, NULL, data,
        cnp.NPY_ARRAY_CARRAY if data != NULL else 0, NULL,
    )
