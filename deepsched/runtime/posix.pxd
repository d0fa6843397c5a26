"""POSIX and Linux thread calls that the runtime uses: declarations and their thinnest wrapping."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <cerrno>
    #include <csignal>
    #include <cstdlib>
    #include <cstring>
    #include <sys/resource.h>
    #include <unistd.h>

    /* 8192 is the largest CONFIG_NR_CPUS of any architecture; glibc's cpu_set_t stops at 1024. */
    struct deepsched_cpu_mask {
        size_t num_bytes; /* 0: no mask, run anywhere */
        unsigned long bits[8192 / (8 * sizeof(unsigned long))];
    };

    /* Starts a thread that is pinned from its first instruction on, if its CPU may be used, and takes
       no signals: those belong to Python's threads, whose waits they must interrupt. It bears its
       name (at most 15 characters) when this returns. Returns 0 or an errno. */
    static inline int deepsched_start_thread(pthread_t* thread, const char* name,
                                             const deepsched_cpu_mask* mask,
                                             void* (*body)(void*), void* argument) {
        pthread_attr_t attributes;
        int error = pthread_attr_init(&attributes);
        if (error) return error;
        if (mask->num_bytes)
            error = pthread_attr_setaffinity_np(&attributes, mask->num_bytes,
                                                reinterpret_cast<const cpu_set_t*>(mask->bits));
        if (!error) {
            sigset_t all, before;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
            error = pthread_create(thread, &attributes, body, argument);
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            if (!error) pthread_setname_np(*thread, name);
        }
        pthread_attr_destroy(&attributes);
        return error;
    }
    /* One that runs Python code: whatever starts from it, processes too, inherits its signal mask. */
    static inline int deepsched_start_signalled_thread(pthread_t* thread, const char* name,
                                                       void* (*body)(void*), void* argument) {
        int error = pthread_create(thread, nullptr, body, argument);
        if (!error) pthread_setname_np(*thread, name);
        return error;
    }
    /* As deepsched_start_thread, but unpinned where the CPU was taken away (EINVAL): README.md,
       "CPUs that go". */
    static inline int deepsched_start_thread_anyway(pthread_t* thread, const char* name,
                                                    const deepsched_cpu_mask* mask,
                                                    void* (*body)(void*), void* argument) {
        static const deepsched_cpu_mask anywhere = {};
        int error = deepsched_start_thread(thread, name, mask, body, argument);
        return error == EINVAL ? deepsched_start_thread(thread, name, &anywhere, body, argument)
                               : error;
    }
    /* A thread's mask. Both return 0 or an errno. */
    static inline int deepsched_get_mask(pthread_t thread, deepsched_cpu_mask* mask) {
        std::memset(mask->bits, 0, sizeof mask->bits);
        mask->num_bytes = sizeof mask->bits;
        return pthread_getaffinity_np(thread, sizeof mask->bits,
                                      reinterpret_cast<cpu_set_t*>(mask->bits));
    }
    static inline int deepsched_set_mask(pthread_t thread, const deepsched_cpu_mask* mask) {
        return pthread_setaffinity_np(thread, mask->num_bytes,
                                      reinterpret_cast<const cpu_set_t*>(mask->bits));
    }
    struct deepsched_work { void* (*body)(void*); void* argument; };
    static void* deepsched_work_aside(void* given) {
        /* Of this thread alone, contrary to POSIX (setpriority(2), "C library/kernel differences"). */
        setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 5);
        deepsched_work* work = static_cast<deepsched_work*>(given);
        return work->body(work->argument);
    }
    /* Calls body(argument) on a thread of its own that gets a quarter of a CPU that another wants, and
       waits for its end: README.md, "Moving". A thread cannot take such a priority back, and threads
       that it starts inherit it. Where none can be started, it is called here. */
    static inline void deepsched_run_aside(void* (*body)(void*), void* argument) {
        static const deepsched_cpu_mask anywhere = {};
        pthread_t thread;
        deepsched_work work = {body, argument};
        if (deepsched_start_thread(&thread, "ds-aside", &anywhere, deepsched_work_aside, &work))
            body(argument);
        else
            pthread_join(thread, nullptr);
    }
    static inline bool deepsched_is_main_thread() { return gettid() == getpid(); }
    """
    ctypedef unsigned long pthread_t
    ctypedef struct CpuMask "deepsched_cpu_mask":
        size_t num_bytes
        unsigned long bits[128]

    cdef enum:
        MAX_CPUS "8192"
        # How often a thread that waits natively and must hear signals returns to look for them.
        SIGNAL_CHECK_NS "100000000"

    int start_thread "deepsched_start_thread"(
        pthread_t* thread, const char* name, const CpuMask* mask,
        void* (*body)(void*) noexcept nogil, void* argument,
    ) noexcept
    int start_signalled_thread "deepsched_start_signalled_thread"(
        pthread_t* thread, const char* name, void* (*body)(void*) noexcept, void* argument
    ) noexcept
    int start_thread_anyway "deepsched_start_thread_anyway"(
        pthread_t* thread, const char* name, const CpuMask* mask,
        void* (*body)(void*) noexcept nogil, void* argument,
    ) noexcept
    void run_aside "deepsched_run_aside"(
        void* (*body)(void*) noexcept nogil, void* argument
    ) noexcept
    int get_mask "deepsched_get_mask"(pthread_t thread, CpuMask* mask) noexcept
    int set_mask "deepsched_set_mask"(pthread_t thread, const CpuMask* mask) noexcept
    pthread_t pthread_self() noexcept
    bint is_main_thread "deepsched_is_main_thread"() noexcept
    int pthread_join(pthread_t thread, void** result) noexcept
    int pthread_detach(pthread_t thread) noexcept
    int pthread_atfork(
        void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
        void (*child)() noexcept nogil
    ) noexcept
    int sched_getcpu() noexcept
    int sched_yield() noexcept
    void* aligned_alloc(size_t alignment, size_t size) noexcept
