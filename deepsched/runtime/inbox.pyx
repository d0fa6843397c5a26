"""Ended requests on their way to the Python thread that asked for them.

README.md, "Inboxes". A Treiber stack whose consumer takes the whole list at once. Many threads post
without the GIL; one thread takes with it: an event loop, notified through an eventfd, or a thread
of ours that sleeps in `wait`.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from deepsched.runtime.futex cimport futex_wait, futex_wake
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.posix cimport SIGNAL_CHECK_NS, is_main_thread, sched_yield
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport (
    memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

import os

from deepsched.errors import FileLimitError

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void* data, size_t num_bytes)
    ssize_t write(int fd, const void* data, size_t num_bytes)


@cython.final
@cython.no_gc  # nodes hold references that the collector cannot see through
cdef class Inbox:
    """A list of ended requests; `with_eventfd` for a consumer that polls a file descriptor."""

    def __cinit__(self, bint with_eventfd=False):
        self.generation = fork_generation()
        self.eventfd = self.notified_fd = -1
        if with_eventfd:
            try:
                self.eventfd = self.notified_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            except OSError:  # a sandbox may refuse it
                self.open_pipe()

    cdef open_pipe(self):
        try:
            self.eventfd, self.notified_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise FileLimitError(
                error.errno,
                f"no descriptor for the results of an event loop: {error.strerror}. ulimit -n "
                "(RLIMIT_NOFILE) says how many a process may have",
            ) from error

    def __dealloc__(self):
        # acquire: pairs with the release in release(). The node that woke our consumer may be gone
        # while its poster still has to notify.
        if self.generation == fork_generation():
            while self.num_posting.load(memory_order_acquire) != 0:
                with nogil:  # the poster may need the core, and others the GIL
                    sched_yield()
        if self.notified_fd != self.eventfd:
            os.close(self.notified_fd)
        if self.eventfd >= 0:
            os.close(self.eventfd)

    cdef bint post(self, Node* node) noexcept nogil:
        """Delivers `node`, which its consumer may free from then on.

        True: the consumer may not know of it. The caller then owes it a notification:
        `notify_and_release`, or `release` if it owes this inbox one already. Until then the inbox
        stays alive.
        """
        cdef NodePointer newest = self.newest.load(memory_order_relaxed)
        # relaxed: published by the exchange below, up to which the node keeps us alive.
        self.num_posting.fetch_add(1, memory_order_relaxed)
        while True:
            node.next = newest
            # seq_cst: publishes the node to take(), and comes before the look at is_waited_for in
            # notify() (README, "Inboxes").
            if self.newest.compare_exchange_weak(newest, node, memory_order_seq_cst):
                break
        if newest == NULL:
            return True
        self.release()  # whoever found the list empty notifies
        return False

    cdef void notify_and_release(self) noexcept nogil:
        self.notify()
        self.release()

    cdef void release(self) noexcept nogil:
        """The poster's last touch."""
        # release: pairs with the acquire in __dealloc__.
        self.num_posting.fetch_sub(1, memory_order_release)

    cdef void notify(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.eventfd >= 0:
            write(self.notified_fd, &one, sizeof(one))  # a full pipe is as good
        elif self.is_waited_for.exchange(0, memory_order_seq_cst):
            futex_wake(&self.is_waited_for, 1)

    def take(self) -> list:
        """Everything that has arrived, the oldest first. Never blocks."""
        cdef Node* node
        cdef Node* next
        cdef object owner
        cdef list taken = []
        cdef char[1024] notifications
        if self.eventfd >= 0:
            # Before the exchange: the poster of a node that we miss finds the list empty, and
            # notifies again. It never blocks, unlike os.read under eventlet. What a pipe still holds,
            # the next call reads.
            read(self.eventfd, notifications, sizeof(notifications))
        # seq_cst, for its acquire: what the posters wrote to the requests is visible.
        node = self.newest.exchange(NULL, memory_order_seq_cst)
        while node != NULL:
            next = node.next  # `owner` holds the node: read it first
            owner = <object><PyObject*>node.owner
            taken.append(owner)
            Py_DECREF(owner)  # the node's reference
            node = next
        taken.reverse()
        return taken

    def wait(self, double timeout_s=-1.0) -> None:
        """Sleeps until something is there, `poke` was called, or `timeout_s` has passed.

        May return early. One thread at a time, and only without an eventfd.
        """
        cdef int64_t timeout_ns = -1 if timeout_s < 0 else <int64_t>(min(timeout_s, 1e9) * 1e9)
        if is_main_thread() and not 0 <= timeout_ns < SIGNAL_CHECK_NS:
            # A signal may arrive between Python's last look and the sleep: the caller, Python code
            # in a loop, gets to look at it when we return.
            timeout_ns = SIGNAL_CHECK_NS
        with nogil:
            # seq_cst: register, then look: README, "Inboxes".
            self.is_waited_for.store(1, memory_order_seq_cst)
            if (
                self.newest.load(memory_order_seq_cst) == NULL
                and not self.is_poked.load(memory_order_seq_cst)
            ):
                futex_wait(&self.is_waited_for, 1, timeout_ns)
            self.is_waited_for.store(0, memory_order_relaxed)
            self.is_poked.store(0, memory_order_seq_cst)

    def poke(self) -> None:
        """Ends the consumer's current wait, or its next."""
        self.is_poked.store(1, memory_order_seq_cst)
        self.notify()
