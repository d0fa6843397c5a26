"""Pinned, named worker threads, one per core group; how they park and are woken.

README.md, "Park and wake". A worker runs only while its group is its own: whoever owns a group
may hand it over by `wake`, after which the worker owns it.
"""

cimport cython
from deepsched.runtime.futex cimport futex_wait, futex_wake, now_ns, pause
from deepsched.runtime.posix cimport CpuMask, pthread_atfork, pthread_join, start_thread_anyway
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport (
    atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release,
)

import os

from deepsched.errors import ThreadError

cdef enum:
    PARKED = 0  # sleeps on the futex, or is about to; owns nothing
    GRANTED = 1  # has been given its group
    AWAKE = 2  # serves, or looks at the word for its next grant; no system call wakes it
    STOPPING = 3  # must return; final

# A wake-up that took longer waited for a core: that is contention, not the cost of waking.
cdef uint64_t MAX_WAKE_NS = 100_000

# What a wake-up is taken to cost until some were measured; 50 to 70 us on virtual machines.
cdef uint64_t WAKE_NS = 50_000


# --- fork -------------------------------------------------------------------------------------

cdef atomic[uint32_t] _forks  # how many forks this process is away from the one that loaded us


cdef void _on_fork_in_child() noexcept nogil:
    # relaxed: the child has one thread.
    _forks.fetch_add(1, memory_order_relaxed)


cdef uint32_t fork_generation() noexcept nogil:
    """Changes in a forked child. An object made under another generation has lost its threads."""
    return _forks.load(memory_order_relaxed)


def fork_count() -> int:
    """How many forks this process is away from the one that loaded this module."""
    return _forks.load(memory_order_relaxed)


pthread_atfork(NULL, NULL, _on_fork_in_child)


# --- names ------------------------------------------------------------------------------------


cdef bytes thread_name(str name):
    """As much of `name` as the kernel takes: 15 characters."""
    return name.encode("ascii")[:15]


# --- workers ----------------------------------------------------------------------------------


cdef void* _worker_main(void* argument) noexcept nogil:
    cdef Worker* worker = <Worker*>argument
    cdef uint32_t signal
    cdef int64_t sleeps_at = 0
    cdef uint64_t retries_at = 0, now
    while True:
        # acquire: pairs with wake(); the group's last owner is behind us.
        signal = worker.signal.load(memory_order_acquire)
        if signal == STOPPING:
            return NULL
        if signal == GRANTED:
            # AWAKE before serving: when serve() gives the group up, its next owner may wake us
            # again at once, and must find the word ready.
            if worker.signal.compare_exchange_strong(signal, AWAKE, memory_order_acq_rel):
                if worker.granted_ns:
                    record_wake_up(worker.pool, now_ns() - worker.granted_ns)
                retries_at = 0
                sleeps_at = worker.serve(worker.server, worker.group)
                if sleeps_at > 0:
                    sleeps_at += now_ns()
                elif sleeps_at < 0:
                    retries_at = now_ns() - sleeps_at
        elif signal == PARKED and retries_at:
            now = now_ns()
            if now >= retries_at:
                retries_at = 0
                worker.retry(worker.server)  # may grant us our group
            else:
                futex_wait(&worker.signal, PARKED, retries_at - now)
        elif signal == PARKED:
            futex_wait(&worker.signal, PARKED, -1)
        elif sleeps_at > 0 and <int64_t>now_ns() < sleeps_at:
            pause()
        else:
            # acq_rel: fails against a grant that has just been made.
            worker.signal.compare_exchange_strong(signal, PARKED, memory_order_acq_rel)


cdef void record_wake_up(WorkerPoolState* pool, uint64_t took_ns) noexcept nogil:
    # relaxed: a statistic; an update lost to another worker does no harm.
    cdef uint64_t known_ns = pool.wake_ns.load(memory_order_relaxed)
    pool.wake_ns.store(known_ns - known_ns // 8 + took_ns // 8, memory_order_relaxed)


@cython.final
cdef class WorkerPool:
    """One thread for each group. They take no Python objects and never the GIL."""

    def __cinit__(self, int num_workers):
        self.num_workers = num_workers
        self.generation = fork_generation()
        self.workers = <Worker*>calloc(num_workers, sizeof(Worker))
        if self.workers == NULL:
            raise MemoryError(f"no memory for {num_workers} workers")
        self.state.wake_ns.store(WAKE_NS, memory_order_relaxed)  # relaxed: not shared yet

    def __dealloc__(self):
        if self.generation == fork_generation():
            self.stop()
            free(self.workers)  # else: the parent's threads use its copy; leave ours alone

    cdef start(self, ServeFn serve, RetryFn retry, void* server, CpuMask* masks, str prefix):
        """Starts the threads. `masks[g]`: where worker g runs."""
        cdef int group, error
        cdef Worker* worker
        for group in range(self.num_workers):
            worker = &self.workers[group]
            worker.group = group
            worker.pool = &self.state
            worker.serve = serve
            worker.retry = retry
            worker.server = server
            name = thread_name(f"{prefix}-s{group}")
            error = start_thread_anyway(&worker.thread, name, &masks[group], _worker_main, worker)
            if error:
                self.stop()
                raise ThreadError(
                    error,
                    f"could not start the worker of stream {group}: {os.strerror(error)}. Fewer "
                    "streams need fewer threads (a container limits them by pids.max, a user by "
                    "RLIMIT_NPROC)",
                )
            self.num_started = group + 1

    cdef void wake(self, int group) noexcept nogil:
        """Hands `group`, which the caller owns, to its worker."""
        cdef Worker* worker = &self.workers[group]
        # relaxed: a guess, which the exchange checks.
        cdef uint32_t signal = worker.signal.load(memory_order_relaxed)
        cdef bint sleeps
        while signal != STOPPING:  # no request is left then (README, "Shutdown")
            # Ours to write: nobody else grants a group that we own.
            sleeps = signal == PARKED
            worker.granted_ns = now_ns() if sleeps else 0
            # acq_rel: publishes the caller's ownership to the worker's acquire load.
            if worker.signal.compare_exchange_weak(signal, GRANTED, memory_order_acq_rel):
                if sleeps:
                    futex_wake(&worker.signal, 1)
                return

    cdef uint64_t wake_ns(self) noexcept nogil:
        """How long it takes to wake a worker."""
        # relaxed: a statistic.
        return min(self.state.wake_ns.load(memory_order_relaxed), MAX_WAKE_NS)

    cdef size_t num_waking(self) noexcept nogil:
        """How many workers have been given their group and do not serve yet."""
        cdef size_t num_waking = 0
        cdef int group
        for group in range(self.num_workers):
            # relaxed: a hint.
            num_waking += self.workers[group].signal.load(memory_order_relaxed) == GRANTED
        return num_waking

    cdef stop(self):
        """Ends and joins the threads, once. No request may be queued or running."""
        cdef int group, num_started
        with cython.critical_section(self):  # of two callers one finds 0
            num_started = self.num_started
            self.num_started = 0
        with nogil:
            for group in range(num_started):
                # release: the worker reads nothing through it; what it still does, it owns.
                self.workers[group].signal.store(STOPPING, memory_order_release)
                futex_wake(&self.workers[group].signal, 1)
            for group in range(num_started):
                pthread_join(self.workers[group].thread, NULL)
