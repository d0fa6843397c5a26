"""How fast memory is from given CPUs: the latency of one load, and the bandwidth of reading."""

from deepsched.runtime.futex cimport now_ns, pause
from deepsched.runtime.pins cimport one_cpu
from deepsched.runtime.posix cimport (
    MAX_CPUS, CpuMask, aligned_alloc, pthread_join, pthread_t, start_thread,
)
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire

import os

from deepsched.errors import ThreadError

cdef extern from * nogil:
    """
    #include <cstdint>
    #if defined(__x86_64__)
    #include <emmintrin.h>
    #endif

    /* Writes a line back and drops it from all caches, for which no privilege is needed: on aarch64
       Linux sets SCTLR_EL1.UCI. */
    static inline void deepsched_flush_line(const void* line) {
    #if defined(__x86_64__)
        _mm_clflush(line);
    #elif defined(__aarch64__)
        asm volatile("dc civac, %0" ::"r"(line) : "memory");
    #endif
    }
    static inline void deepsched_flushes_done() {
    #if defined(__x86_64__)
        _mm_mfence();
    #elif defined(__aarch64__)
        asm volatile("dsb ish" ::: "memory");
    #endif
    }
    /* Follows the chain to its end; each load waits for the one before. */
    static inline void deepsched_follow(void** link) {
        while (link) link = *reinterpret_cast<void** volatile*>(link);
    }
    /* One load a line: the whole line comes, and the loads are never what limits. */
    static inline void deepsched_read_lines(const char* begin, size_t size) {
        uint64_t sum = 0;
        for (size_t at = 0; at < size; at += 64) sum += *reinterpret_cast<const uint64_t*>(begin + at);
        asm volatile("" ::"r"(sum));
    }
    """
    void flush_line "deepsched_flush_line"(const void* line) noexcept
    void flushes_done "deepsched_flushes_done"() noexcept
    void follow "deepsched_follow"(void** link) noexcept
    void read_lines "deepsched_read_lines"(const char* begin, size_t size) noexcept

cdef enum:
    PAGE = 4096
    # One line in each page, so that no prefetcher guesses the next; few enough pages for the first
    # TLB, so that no page walk is timed.
    NUM_LINKS = 32
    NUM_BATCHES = 200

    # Between two looks at the clock: some microseconds.
    CHUNK = 65536

    # For threads that are to begin together, and one of them does not get its CPU.
    START_PATIENCE_NS = 20_000_000


cdef struct Meter:
    char* memory
    size_t num_bytes
    uint64_t duration_ns
    atomic[int]* num_ready
    int num_meters
    double result


cdef void* _latency_main(void* argument) noexcept nogil:
    cdef Meter* meter = <Meter*>argument
    cdef void** first = NULL
    cdef void** link
    cdef void** following
    cdef uint64_t began, took, least_ns = 0
    cdef int batch, at
    memset(meter.memory, 0, NUM_LINKS * PAGE)
    for at in range(NUM_LINKS):
        # 13 and 32, and 37 and 63, have no common factor: each page once, each at another line.
        link = <void**>(meter.memory + (at * 13 % NUM_LINKS) * PAGE + (at * 37 % 63) * 64)
        link[0] = first
        first = link
    for batch in range(NUM_BATCHES):
        link = first
        while link != NULL:
            following = <void**>link[0]
            flush_line(link)
            link = following
        flushes_done()
        began = now_ns()
        follow(first)
        took = now_ns() - began
        if least_ns == 0 or took < least_ns:  # disturbances only add time
            least_ns = took
    meter.result = least_ns / <double>NUM_LINKS
    return NULL


cdef void* _bandwidth_main(void* argument) noexcept nogil:
    cdef Meter* meter = <Meter*>argument
    cdef uint64_t began, gives_up_ns, now
    cdef size_t at = 0
    cdef double num_read = 0
    # By this thread: so the pages are on its node. Not 0: the kernel has one page of zeros for all
    # that was never written.
    memset(meter.memory, 1, meter.num_bytes)
    # acq_rel and acquire: not needed for data; all begin once all are here.
    meter.num_ready.fetch_add(1, memory_order_acq_rel)
    gives_up_ns = now_ns() + START_PATIENCE_NS
    while meter.num_ready.load(memory_order_acquire) < meter.num_meters and now_ns() < gives_up_ns:
        pause()
    began = now = now_ns()
    while now - began < meter.duration_ns:
        read_lines(meter.memory + at, CHUNK)
        num_read += CHUNK
        at += CHUNK
        if at + CHUNK > meter.num_bytes:
            at = 0
        now = now_ns()
    meter.result = num_read / (now - began) * 1e9
    return NULL


cdef double _run(
    void* (*body)(void*) noexcept nogil, object cpus, size_t num_bytes, double seconds
) except -1:
    """Runs `body` on each of the CPUs at once; the sum of the results."""
    cdef int num_cpus = len(cpus)
    cdef Meter* meters = <Meter*>calloc(num_cpus, sizeof(Meter))
    cdef pthread_t* threads = <pthread_t*>calloc(num_cpus, sizeof(pthread_t))
    cdef atomic[int] num_ready
    cdef CpuMask mask
    cdef int error = 0, num_started = 0, at, cpu = -1
    cdef double total = 0
    num_ready.store(0)
    try:
        if meters == NULL or threads == NULL:
            raise MemoryError
        for at in range(num_cpus):
            meters[at].memory = <char*>aligned_alloc(PAGE, num_bytes)
            if meters[at].memory == NULL:
                raise MemoryError(f"no memory for {num_cpus} buffers of {num_bytes} bytes")
            meters[at].num_bytes = num_bytes
            meters[at].duration_ns = <uint64_t>(seconds * 1e9)
            meters[at].num_ready = &num_ready
            meters[at].num_meters = num_cpus
        for at in range(num_cpus):
            cpu = cpus[at]
            one_cpu(&mask, cpu)
            error = start_thread(&threads[at], b"ds-memory", &mask, body, &meters[at])
            if error:
                break
            num_started += 1
        with nogil:
            for at in range(num_started):
                pthread_join(threads[at], NULL)
                total += meters[at].result
        if error:
            raise ThreadError(
                error, f"could not start a thread on CPU {cpu}: {os.strerror(error)}"
            )
    finally:
        if meters != NULL:
            for at in range(num_cpus):
                free(meters[at].memory)
        free(meters)
        free(threads)
    return total


cdef list _checked(cpus):
    checked = [int(cpu) for cpu in cpus]
    if not checked or not all(0 <= cpu < MAX_CPUS for cpu in checked):
        raise ValueError(f"CPUs from 0 to {MAX_CPUS - 1} are needed, got {checked}")
    return checked


def memory_latency_ns(int cpu) -> float:
    """The time of a load from memory by this CPU (an OS number), in ns. Takes 2 ms.

    Raises:
        ThreadError: the CPU is not there, or not for this process.
    """
    return _run(_latency_main, _checked([cpu]), NUM_LINKS * PAGE, 0)


def read_bandwidth(cpus, size_t num_bytes, double seconds) -> float:
    """Bytes a second that these CPUs (OS numbers) read together, each from its own buffer.

    Args:
        cpus: where to read, one thread each.
        num_bytes: the size of each buffer; much more than the caches hold, or it is their bandwidth.
        seconds: how long to read, once all buffers are written to.

    Raises:
        ThreadError: a CPU is not there, or not for this process.
    """
    cdef size_t num_chunks = num_bytes // CHUNK
    if num_chunks == 0:
        num_chunks = 1
    return _run(_bandwidth_main, _checked(cpus), num_chunks * CHUNK, seconds)
