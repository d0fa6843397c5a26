"""Where the threads of core groups are pinned, and whether they may still be there.

README.md, "CPUs that go".
"""

cimport cython
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.posix cimport (
    MAX_CPUS, CpuMask, get_mask, pthread_self, pthread_t, set_mask,
)
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from libcpp.atomic cimport atomic, memory_order_relaxed

import logging
import os

logger = logging.getLogger("deepsched")

# How often a group's threads are looked at while it runs requests: two system calls a thread.
cdef uint64_t CHECK_NS = 100_000_000

# Groups notice a change one after another: it is told once they had the time to.
cdef uint64_t SETTLED_NS = 2 * CHECK_NS

cdef int WORD_BITS = 8 * sizeof(unsigned long)


cdef void one_cpu(CpuMask* mask, int cpu) noexcept nogil:
    """`cpu`: an OS number below MAX_CPUS."""
    memset(mask, 0, sizeof(CpuMask))
    mask.bits[cpu // WORD_BITS] = 1ul << (cpu % WORD_BITS)
    mask.num_bytes = (cpu // WORD_BITS + 1) * sizeof(unsigned long)


cdef void every_cpu(CpuMask* mask) noexcept nogil:
    memset(mask.bits, 0xff, sizeof(mask.bits))
    mask.num_bytes = sizeof(mask.bits)


cdef bint are_equal(const CpuMask* one, const CpuMask* other) noexcept nogil:
    return memcmp(one.bits, other.bits, sizeof(one.bits)) == 0


cdef bint has_cpu(const CpuMask* mask, int cpu) noexcept nogil:
    return mask.bits[cpu // WORD_BITS] >> (cpu % WORD_BITS) & 1


cdef int learn_masks(CpuMask* own, CpuMask* allowed) noexcept nogil:
    """The calling thread's mask, and the widest that its cpuset allows. Returns 0 or an errno."""
    cdef pthread_t thread = pthread_self()
    cdef int error = get_mask(thread, own)
    if error:
        return error
    every_cpu(allowed)
    error = set_mask(thread, allowed)
    if error:
        return error
    error = get_mask(thread, allowed)
    # Equal: nobody restricted it, and it stays free to follow its cpuset.
    return error if error == 0 and are_equal(own, allowed) else set_mask(thread, own) or error


def refused_cpus(cpus: list[int]) -> list[int]:
    """Which of `cpus` no thread may be pinned to, since the cpuset lacks them.

    Raises:
        OSError: the system refuses to pin threads at all, as a sandbox's filter of system calls
            may.
    """
    cdef CpuMask own, allowed
    cdef int error = learn_masks(&own, &allowed)
    if error:
        raise OSError(error, os.strerror(error))
    return [cpu for cpu in cpus if not has_cpu(&allowed, cpu)]


@cython.final
cdef class Pins:
    """The pinning of core groups; made in the thread whose affinity the engine's callers share.

    Args:
        cpus: by group, the CPU of the thread that calls Run; None for groups without.
    """

    def __cinit__(self, list cpus):
        cdef int group, cpu
        self.is_pinned = cpus[0] is not None
        self.told = []
        self.masks = <CpuMask*>calloc(len(cpus), sizeof(CpuMask))
        self.first_cpu = <int*>calloc(len(cpus), sizeof(int))
        self.checked_ns = <uint64_t*>calloc(len(cpus), sizeof(uint64_t))
        self.is_lost = <atomic[uint8_t]*>calloc(MAX_CPUS, sizeof(atomic[uint8_t]))
        if (
            self.masks == NULL or self.first_cpu == NULL or self.checked_ns == NULL
            or self.is_lost == NULL
        ):
            raise MemoryError(f"no memory for {len(cpus)} core groups")
        for group in range(len(cpus)):
            self.first_cpu[group] = cpus[group] if self.is_pinned else -1
            if self.is_pinned:
                one_cpu(&self.masks[group], self.first_cpu[group])
        if self.is_pinned and learn_masks(&self.home, &self.widest) == 0:
            if are_equal(&self.home, &self.widest):
                every_cpu(&self.widest)
            else:
                self.widest = self.home

    def __dealloc__(self):
        free(self.masks)
        free(self.first_cpu)
        free(self.checked_ns)
        free(self.is_lost)

    # --- Without the GIL --------------------------------------------------------------------

    cdef bint move(self, CpuMask* own, int group) noexcept nogil:
        """Moves the calling thread to where `group` begins. True: `own` is to be put back.

        The mask is read each time: the thread's owner may have changed it. A change from outside
        during the run is lost.
        """
        cdef pthread_t thread = pthread_self()
        # relaxed: a hint, here and below; the kernel decides.
        return (
            self.is_pinned
            and not self.is_lost[self.first_cpu[group]].load(memory_order_relaxed)
            and get_mask(thread, own) == 0
            and set_mask(thread, &self.masks[group]) == 0
        )

    cdef void put_back(self, CpuMask* own) noexcept nogil:
        """Gives the calling thread the mask that it had, and lets it grow again with its cpuset.

        A mask that was set stays when the cpuset grows (Linux 6.2). `own` may be what a smaller
        cpuset has left of a wider mask, so that is asked for first.
        """
        cdef CpuMask now
        cdef pthread_t thread = pthread_self()
        if self.home.num_bytes and set_mask(thread, &self.widest) == 0:
            if are_equal(own, &self.home):
                return
            if get_mask(thread, &now) == 0 and are_equal(own, &now):
                return
        if set_mask(thread, own) != 0:  # none of it is left
            every_cpu(&now)
            set_mask(thread, &now)

    cdef void move_worker(self, int group) noexcept nogil:
        """Moves the calling thread, a worker, to where `group` begins."""
        cdef CpuMask anywhere
        if set_mask(pthread_self(), &self.masks[group]) != 0:
            every_cpu(&anywhere)  # not where it was: that is another worker's
            set_mask(pthread_self(), &anywhere)

    cdef bint is_due(self, int group, uint64_t now) noexcept nogil:
        """Whether the threads of `group`, which the caller owns, are to be looked at."""
        if not self.is_pinned or now - self.checked_ns[group] < CHECK_NS:
            return False
        self.checked_ns[group] = now
        return True

    cdef void check(self, pthread_t thread, int cpu, uint64_t now) noexcept nogil:
        """Looks at a thread that was pinned to `cpu`, and pins it again if it may be there.

        The caller owns its group, so that nobody moves the thread meanwhile.
        """
        cdef CpuMask mask, pinned
        cdef bint is_lost
        if get_mask(thread, &mask) != 0:
            return
        is_lost = not has_cpu(&mask, cpu)
        one_cpu(&pinned, cpu)
        if not is_lost and not are_equal(&mask, &pinned):
            set_mask(thread, &pinned)
        if self.is_lost[cpu].exchange(is_lost, memory_order_relaxed) != is_lost:
            self.changed_ns.store(now, memory_order_relaxed)
            self.num_changes.fetch_add(1, memory_order_relaxed)

    # --- With the GIL -------------------------------------------------------------------------

    @property
    def lost_cpus(self) -> list[int]:
        """The groups' CPUs that their threads were found not to be allowed on, ascending."""
        return [
            cpu for cpu in range(MAX_CPUS)
            if self.is_lost[cpu].load(memory_order_relaxed)  # relaxed: a statistic
        ]

    cdef bint has_news(self) noexcept nogil:
        # relaxed: seen late, it is told by the next request.
        return self.num_changes.load(memory_order_relaxed) != self.num_told.load(
            memory_order_relaxed
        )

    cdef tell(self):
        """Logs what has changed since the last time, once it has settled."""
        if now_ns() - self.changed_ns.load(memory_order_relaxed) < SETTLED_NS:
            return
        # Before anything that a signal handler may interrupt.
        self.num_told.store(self.num_changes.load(memory_order_relaxed), memory_order_relaxed)
        lost = self.lost_cpus
        with cython.critical_section(self):
            before = self.told
            self.told = lost
        if gone := [str(cpu) for cpu in lost if cpu not in before]:
            logger.warning(
                "this process may not use CPU %s any more: its cpuset or its affinity has changed. "
                "Requests go on, on the CPUs that are left, which several threads now share, until "
                "Context.resize() moves the streams; Context(follow='cpuset') does so by itself",
                ", ".join(gone),
            )
        if back := [str(cpu) for cpu in before if cpu not in lost]:
            logger.warning("CPU %s may be used again, and is", ", ".join(back))
