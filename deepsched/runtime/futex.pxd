"""The kernel's futex, the clock and the pause hint: what the runtime waits with.

std::atomic<uint32_t> has the size and the representation of uint32_t on both our architectures
(asserted below), so its address can be handed to the kernel.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef extern from * nogil:
    """
    #include <atomic>
    #include <cerrno>
    #include <climits>
    #include <cstdint>
    #include <ctime>
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex word is 32 bits");

    /* 0: woken, or the word was not `expected` any more; else ETIMEDOUT or EINTR. */
    static inline int deepsched_futex_wait(std::atomic<uint32_t>* word, uint32_t expected,
                                           int64_t timeout_ns) {
        struct timespec ts, *timeout = nullptr;
        if (timeout_ns >= 0) {
            ts.tv_sec = timeout_ns / 1000000000;
            ts.tv_nsec = timeout_ns % 1000000000;
            timeout = &ts;
        }
        long rc = syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE,
                          expected, timeout, nullptr, 0);
        if (rc == 0 || errno == EAGAIN) return 0;
        return errno;
    }
    static inline void deepsched_futex_wake(std::atomic<uint32_t>* word, int count) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, count, nullptr,
                nullptr, 0);
    }
    static inline uint64_t deepsched_now_ns() {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return static_cast<uint64_t>(ts.tv_sec) * 1000000000u + static_cast<uint64_t>(ts.tv_nsec);
    }
    static inline void deepsched_pause() {
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        asm volatile("isb" ::: "memory"); /* `yield` is a nop on most cores; isb really waits */
    #endif
    }
    """
    int futex_wait "deepsched_futex_wait"(
        atomic[uint32_t]* word, uint32_t expected, int64_t timeout_ns
    ) noexcept
    void futex_wake "deepsched_futex_wake"(atomic[uint32_t]* word, int count) noexcept
    uint64_t now_ns "deepsched_now_ns"() noexcept
    void pause "deepsched_pause"() noexcept
    int WAKE_ALL "INT_MAX"
    int EINTR
    int ETIMEDOUT
