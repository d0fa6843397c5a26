"""A thread of the operating system that runs Python code, whatever `threading` has become.

gevent and eventlet put greenlets in the place of `threading.Thread` and of `_thread`'s functions: they
take turns on the thread that started them, and one that waits natively stops all of them.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from deepsched.runtime.futex cimport WAKE_ALL, futex_wait, futex_wake, now_ns
from deepsched.runtime.pool cimport fork_generation, thread_name
from deepsched.runtime.posix cimport (
    SIGNAL_CHECK_NS, pthread_detach, pthread_join, pthread_t, start_signalled_thread,
)
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_acquire, memory_order_release

import os

from deepsched.errors import ThreadError


@cython.final
cdef class PythonThread:
    """Calls `body()` on a thread of its own, for which the interpreter's exit does not wait.

    Args:
        body: should not raise; what it raises goes to `sys.unraisablehook`.
        name: at most 15 characters, ASCII.
        what: what errors call it, after "could not start".
    """

    cdef object body
    cdef str name
    cdef str what
    cdef pthread_t thread
    cdef bint is_joinable  # started, and neither joined nor detached
    cdef atomic[uint32_t] has_ended  # a futex word
    cdef uint32_t generation

    def __init__(self, body, str name not None, str what not None):
        self.body = body
        self.name = name
        self.what = what
        self.generation = fork_generation()

    def __dealloc__(self):
        if self.is_joinable and self.generation == fork_generation():
            pthread_detach(self.thread)

    def start(self) -> None:
        """Starts it, once. It may have run before this returns.

        Raises:
            ThreadError: the system refuses the thread; this may be called again.
        """
        cdef int error
        cdef bytes name = thread_name(self.name)
        Py_INCREF(self)  # the thread's own
        error = start_signalled_thread(&self.thread, name, _main, <void*>self)
        if error:
            Py_DECREF(self)
            raise ThreadError(
                error,
                f"could not start {self.what}: {os.strerror(error)}. A container limits threads by "
                "pids.max, a user by RLIMIT_NPROC",
            )
        self.is_joinable = True

    def join(self, double timeout_s) -> bool:
        """Waits until it has ended, `timeout_s` seconds at most. Returns whether it has.

        Signals are heard meanwhile. Not to be called by the thread itself, nor before `start`.
        """
        cdef uint64_t now = now_ns(), until = now + <uint64_t>(min(timeout_s, 1e9) * 1e9)
        # acquire: pairs with the release in _main; all that the thread did is visible.
        while not self.has_ended.load(memory_order_acquire):
            now = now_ns()
            if now >= until:
                return False
            with nogil:
                futex_wait(&self.has_ended, 0, min(until - now, <uint64_t>SIGNAL_CHECK_NS))
            PyErr_CheckSignals()
        cdef bint joins
        with cython.critical_section(self):  # of two callers, one joins
            joins = self.is_joinable
            self.is_joinable = False
        if joins:
            with nogil:
                pthread_join(self.thread, NULL)
        return True


cdef void* _main(void* argument) noexcept with gil:
    cdef PythonThread self = <PythonThread>argument
    Py_DECREF(self)  # start()'s; `self` holds it from here on
    try:
        self.body()
    finally:
        self.body = None  # it may refer to whoever holds us
        self.has_ended.store(1, memory_order_release)
        futex_wake(&self.has_ended, WAKE_ALL)
    return NULL
