from deepsched.runtime.futex cimport now_ns
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef struct Node:
    # Links what is delivered. `owner` is a PyObject*, and the node holds a reference to it from the
    # moment it is handed to native code until `take`.
    Node* next
    void* owner

ctypedef Node* NodePointer

cdef class Inbox:
    cdef atomic[NodePointer] newest
    cdef atomic[uint32_t] is_waited_for
    cdef atomic[uint32_t] is_poked
    cdef atomic[uint32_t] num_posting
    cdef readonly int eventfd  # readable once it was notified; a pipe where there is no eventfd
    cdef int notified_fd  # its other end
    cdef uint32_t generation

    cdef open_pipe(self)
    cdef bint post(self, Node* node) noexcept nogil
    cdef void notify_and_release(self) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef void notify(self) noexcept nogil

cdef enum:
    # How long a worker defers a notification while more short runs follow, ns.
    MAX_DEFERRAL_NS = 50_000

cdef struct DeferredNotification:
    # At most one inbox that its worker owes a notification. README, "Inboxes".
    void* inbox  # NULL: none is owed
    uint64_t since_ns

cdef inline void flush(DeferredNotification* owed) noexcept nogil:
    """Notifies now, if a notification is owed."""
    if owed.inbox != NULL:
        (<Inbox>owed.inbox).notify_and_release()
        owed.inbox = NULL

cdef inline void defer(DeferredNotification* owed, void* inbox) noexcept nogil:
    """Owes `inbox` the notification that its `post` asked for; one for another inbox goes out."""
    if inbox == owed.inbox:
        (<Inbox>inbox).release()  # one notification covers both posts, and one hold is enough
    else:
        flush(owed)
        owed.inbox = inbox
        owed.since_ns = now_ns()

cdef inline bint is_overdue(DeferredNotification* owed) noexcept nogil:
    return owed.inbox != NULL and now_ns() - owed.since_ns > MAX_DEFERRAL_NS
