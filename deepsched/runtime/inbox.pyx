"""Where ended requests wait for the Python thread that asked for them.

README.md, "Inboxes". Many threads post, without the GIL; one thread takes, with it: an event loop,
woken by an eventfd, or a thread of ours, that sleeps in `wait`.
"""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from deepsched.runtime.futex cimport futex_wait, futex_wake
from deepsched.runtime.pool cimport fork_generation
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport (
    memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

import os

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void* data, size_t num_bytes)


@cython.final
@cython.no_gc  # letters hold references that the collector cannot see through
cdef class Inbox:
    """A list of ended requests; `with_eventfd` for a consumer that polls a file descriptor."""

    def __cinit__(self, bint with_eventfd=False):
        self.generation = fork_generation()
        self.eventfd = -1
        if with_eventfd:
            self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __dealloc__(self):
        # acquire: pairs with the release in post(). The letter that woke our consumer may be gone,
        # but its poster still has to ring.
        if self.generation == fork_generation():
            while self.num_posting.load(memory_order_acquire) != 0:
                with nogil:  # the poster may need the core, and others the GIL
                    sched_yield()
        if self.eventfd >= 0:
            os.close(self.eventfd)

    cdef bint post(self, Letter* letter) noexcept nogil:
        """Delivers `letter`, which its consumer may free from then on.

        True: the consumer may not know. The caller owes it a ring, by `ring_and_go` or, if it owes
        one already, by `go`; until then the inbox cannot go away.
        """
        cdef LetterPointer below = self.newest.load(memory_order_relaxed)
        # relaxed: published by the exchange below, before which the letter keeps us alive.
        self.num_posting.fetch_add(1, memory_order_relaxed)
        while True:
            letter.below = below
            # seq_cst: publishes the letter to take(), and stands before the look at
            # is_waited_for in ring() (README, "Inboxes").
            if self.newest.compare_exchange_weak(below, letter, memory_order_seq_cst):
                break
        if below == NULL:
            return True
        self.go()  # whoever posted the first has rung, or owes it
        return False

    cdef void ring_and_go(self) noexcept nogil:
        self.ring()
        self.go()

    cdef void go(self) noexcept nogil:
        # release: our last touch.
        self.num_posting.fetch_sub(1, memory_order_release)

    cdef void ring(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.eventfd >= 0:
            write(self.eventfd, &one, sizeof(one))
        elif self.is_waited_for.exchange(0, memory_order_seq_cst):
            futex_wake(&self.is_waited_for, 1)

    def take(self) -> list:
        """Everything that has arrived, the oldest first. Never blocks."""
        cdef Letter* letter
        cdef Letter* below
        cdef object owner
        cdef list taken = []
        if self.eventfd >= 0:
            # Before the exchange: a letter that we miss then finds the list empty, and rings anew.
            try:
                os.eventfd_read(self.eventfd)
            except BlockingIOError:
                pass
        # acquire (in seq_cst): all that the posters wrote to the requests is visible.
        letter = self.newest.exchange(NULL, memory_order_seq_cst)
        while letter != NULL:
            below = letter.below  # `owner` holds the letter: read it first
            owner = <object><PyObject*>letter.owner
            taken.append(owner)
            Py_DECREF(owner)  # the letter's reference
            letter = below
        taken.reverse()
        return taken

    def wait(self, double timeout_s=-1.0) -> None:
        """Sleeps until something is there, `poke` was called, or `timeout_s` has passed.

        May return early. One thread at a time, and only without an eventfd.
        """
        cdef int64_t timeout_ns = -1 if timeout_s < 0 else <int64_t>(timeout_s * 1e9)
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
        """Ends the consumer's present or next wait."""
        self.is_poked.store(1, memory_order_seq_cst)
        self.ring()
