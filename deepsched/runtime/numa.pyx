"""Memory of chosen NUMA nodes: for a file, before anybody maps it, and for what a thread allocates."""

from libc.errno cimport EINTR, errno
from libc.string cimport memset

import os

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    void* MAP_FAILED
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_get_mempolicy
    long SYS_mbind
    long SYS_set_mempolicy

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    ssize_t pread(int fd, void* buffer, size_t num_bytes, long offset)

# <numaif.h> belongs to libnuma, which need not be installed.
cdef enum:
    MPOL_PREFERRED = 1
    MPOL_BIND = 2
    MPOL_INTERLEAVE = 3
    MASK_BITS = MAX_NODES + 1  # without the + 1 the kernel drops the last node of a mask


cdef MemoryPolicy policy_for(nodes) except *:
    """On the one node while it has room, or page by page in turn on each of several.

    Raises:
        ValueError: `nodes` is empty, or has a number that no node of Linux can have.
    """
    cdef MemoryPolicy policy
    cdef int node
    if not nodes or not all(0 <= number < MAX_NODES for number in nodes):
        raise ValueError(f"nodes must be numbers from 0 to {MAX_NODES - 1}, got {nodes!r}")
    memset(&policy, 0, sizeof(policy))
    policy.mode = MPOL_PREFERRED if len(nodes) == 1 else MPOL_INTERLEAVE
    for node in nodes:
        policy.nodes[node >> 6] |= (<unsigned long>1) << (node & 63)
    return policy


cdef bint set_thread_policy(MemoryPolicy* wanted, MemoryPolicy* before) noexcept nogil:
    """Sets the calling thread's policy, which threads that it starts inherit. Returns whether the
    system allows it; then `before` is the one that it had. `before` may be NULL."""
    if before != NULL and syscall(
        SYS_get_mempolicy, &before.mode, &before.nodes[0], MASK_BITS, NULL, 0
    ):
        return False
    return syscall(SYS_set_mempolicy, wanted.mode, &wanted.nodes[0], MASK_BITS) == 0


def copy_to_nodes(int source_fd, int target_fd, nodes) -> bool:
    """Makes the file `target_fd`, of a tmpfs, a copy of `source_fd` whose pages lie in `nodes`.

    All in the one node, or page by page in turn in each of several. Interleaved pages go to another
    node where theirs is full; those of a single node do not.

    mbind on a shared mapping of a tmpfs file sets the policy of the file, not only of the mapping,
    so it holds for every process that maps it later. (Files of a disk take no such policy.)

    Returns whether the system took the policy; the copy is made in either case. A container's
    seccomp filter may refuse mbind.

    Raises:
        OSError: the file cannot be read, or does not fit the tmpfs.
        ValueError: `nodes` is empty, or has a number that no node of Linux can have.
    """
    cdef size_t size = os.fstat(source_fd).st_size
    cdef size_t done = 0
    cdef ssize_t got = 0
    cdef long refused
    cdef MemoryPolicy policy = policy_for(nodes)
    cdef char* target
    if policy.mode == MPOL_PREFERRED:
        # Not somewhere else while the kernel can free what files keep in memory there.
        policy.mode = MPOL_BIND
    if size == 0:
        return True
    os.ftruncate(target_fd, size)
    target = <char*>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, target_fd, 0)
    if target == MAP_FAILED:
        raise OSError(errno, f"cannot map {size} bytes")
    try:
        with nogil:
            refused = syscall(
                SYS_mbind, target, size, policy.mode, &policy.nodes[0], MASK_BITS, 0
            )
        # Allocates every page, by the policy. Without this, one that does not fit is a SIGBUS.
        os.posix_fallocate(target_fd, 0, size)
        while done < size:
            with nogil:
                got = pread(source_fd, target + done, size - done, done)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                raise OSError(errno if got < 0 else 0, f"read {done} of {size} bytes")
            done += got
    finally:
        munmap(target, size)
    return refused == 0
