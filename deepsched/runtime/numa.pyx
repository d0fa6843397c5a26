"""Memory of one NUMA node: a file's pages are put there before anybody maps them."""

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
    long SYS_mbind

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    ssize_t pread(int fd, void* buffer, size_t num_bytes, long offset)

# <numaif.h> belongs to libnuma, which need not be installed.
cdef enum:
    MPOL_BIND = 2
    MAX_NODES = 1024  # of Linux
    NODE_WORDS = 16


def copy_to_node(int source_fd, int target_fd, int node) -> bool:
    """Makes the file `target_fd`, of a tmpfs, a copy of `source_fd` whose pages lie in `node`.

    mbind on a shared mapping of a tmpfs file sets the policy of the file, not only of the mapping,
    so it holds for every process that maps it later. (Files of a disk take no such policy.)

    Returns whether the system took the policy; the copy is made in either case. A container's
    seccomp filter may refuse mbind.

    Raises:
        OSError: the file cannot be read, or does not fit the tmpfs.
    """
    cdef size_t size = os.fstat(source_fd).st_size
    cdef size_t done = 0
    cdef ssize_t got = 0
    cdef long refused
    cdef unsigned long nodes[NODE_WORDS]
    cdef char* target
    if not 0 <= node < MAX_NODES:
        raise ValueError(f"node must be between 0 and {MAX_NODES - 1}, got {node}")
    if size == 0:
        return True
    os.ftruncate(target_fd, size)
    target = <char*>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, target_fd, 0)
    if target == MAP_FAILED:
        raise OSError(errno, f"cannot map {size} bytes")
    try:
        memset(nodes, 0, sizeof(nodes))
        nodes[node >> 6] = (<unsigned long>1) << (node & 63)
        with nogil:
            # Without the + 1 the kernel drops the last node of the mask.
            refused = syscall(SYS_mbind, target, size, MPOL_BIND, &nodes[0], MAX_NODES + 1, 0)
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
