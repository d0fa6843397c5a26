# distutils: language=c++
# distutils: extra_compile_args=-std=c++17 -O2
# cython: language_level=3, cdivision=True
"""Loops without Python in them: what the parts cost by themselves. Built by bench/build.py."""

from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.groups cimport CoreGroups
from deepsched.runtime.library cimport check, library
from deepsched.runtime.ort cimport OrtApi, OrtStatus, OrtValue
from deepsched.runtime.queue cimport RequestQueue, Tag
from deepsched.runtime.session cimport Session
from deepsched.runtime.values cimport ValueInfo
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, qsort

cdef extern from * nogil:
    """
    #include <deque>
    #include <mutex>

    /* What one would write first: a deque behind a lock. */
    struct MutexQueue {
        std::mutex mutex;
        std::deque<void*> items;
        void push(void* item) {
            std::lock_guard<std::mutex> guard(mutex);
            items.push_back(item);
        }
        bool pop(void** item) {
            std::lock_guard<std::mutex> guard(mutex);
            if (items.empty()) return false;
            *item = items.front();
            items.pop_front();
            return true;
        }
    };
    """
    cdef cppclass MutexQueue:
        void push(void* item)
        bint pop(void** item)


cdef int _compare(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0]
    cdef uint64_t y = (<const uint64_t*>b)[0]
    return (x > y) - (x < y)


def run_p50_ns(Session session, value, int count) -> int:
    """The median time of a bare Run with one input and one output, and of freeing the output."""
    cdef const OrtApi* api = library().api
    cdef ValueInfo info = session.describe_inputs()[0]
    cdef bytes input_name = info.name.encode()
    cdef bytes output_name = session.describe_outputs()[0].name.encode()
    cdef const char* input_names = input_name
    cdef const char* output_names = output_name
    cdef list kept = []
    cdef OrtValue* given = info.to_ort(value, kept)
    cdef OrtValue* got
    cdef OrtStatus* status
    cdef uint64_t begin, median
    cdef int i
    cdef uint64_t* times = <uint64_t*>malloc(count * sizeof(uint64_t))
    with nogil:
        for i in range(count):
            got = NULL
            begin = now_ns()
            status = api.Run(
                session.handle, NULL, &input_names, &given, 1, &output_names, 1, &got
            )
            if status != NULL:
                break
            api.ReleaseValue(got)
            times[i] = now_ns() - begin
    check(status)
    api.ReleaseValue(given)
    qsort(times, count, sizeof(uint64_t), _compare)
    median = times[count // 2]
    free(times)
    return median


def push_and_pop(RequestQueue queue, int count) -> None:
    """`count` pushes, each followed by a pop, without the GIL."""
    cdef void* item = NULL
    cdef Tag tag
    cdef int i
    tag.key = tag.deadline_ns = 0
    with nogil:
        for i in range(count):
            while not queue.try_push(<void*>1, tag):
                pass
            while not queue.try_pop(&item):
                pass


cdef class LockedQueue:
    """The same interface over MutexQueue."""

    cdef MutexQueue queue

    def push_and_pop(self, int count) -> None:
        cdef void* item = NULL
        cdef int i
        with nogil:
            for i in range(count):
                self.queue.push(<void*>1)
                while not self.queue.pop(&item):
                    pass


def claim_and_release(CoreGroups groups, int count) -> None:
    """`count` claims of any group, each followed by its release, without the GIL."""
    cdef int i, group
    with nogil:
        for i in range(count):
            group = groups.claim(-1)
            if group >= 0:
                groups.release(group)
