cdef enum:
    MAX_NODES = 1024  # of Linux
    NODE_WORDS = 16

cdef struct MemoryPolicy:
    # Where the kernel puts pages that a thread is the first to touch.
    int mode
    unsigned long nodes[NODE_WORDS]

cdef MemoryPolicy policy_for(nodes) except *
cdef bint set_thread_policy(MemoryPolicy* wanted, MemoryPolicy* before) noexcept nogil
