"""Which core groups are free: claim and release, one atomic operation each.

README.md, "Claim and release". A set bit is a free group. Whoever clears the bit owns the group,
until it sets the bit again or hands the group over to its worker.
"""

cimport cython
from deepsched.runtime.posix cimport aligned_alloc
from libc.stdlib cimport free
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst


@cython.final
cdef class CoreGroups:
    """`num_groups` groups, all free at first.

    >>> groups = CoreGroups(2)
    >>> groups.try_claim(1), groups.try_claim(1), groups.try_claim()
    (1, 0, None)
    >>> groups.give_back(0)
    >>> groups.try_claim()
    0
    """

    def __cinit__(self, int num_groups):
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        self.num_groups = num_groups
        self.num_words = (num_groups + 63) // 64
        self.words = <FreeWord*>aligned_alloc(64, self.num_words * sizeof(FreeWord))
        if self.words == NULL:
            raise MemoryError(f"no memory for {num_groups} core groups")
        cdef int word, group
        for word in range(self.num_words):
            self.words[word].bits.store(0, memory_order_relaxed)  # relaxed: not shared yet
        for group in range(num_groups):
            # relaxed: not shared yet.
            self.words[group >> 6].bits.fetch_or(<uint64_t>1 << (group & 63), memory_order_relaxed)

    def __dealloc__(self):
        free(self.words)

    cdef int claim(self, int preferred) noexcept nogil:
        """A free group, now the caller's; -1 where none is free. `preferred` first, if not -1.

        seq_cst throughout: the look for a free group comes after the pusher's publishing store
        (README, "No lost wake-up"), and taking a group sees all that its last owner did.
        """
        cdef int first_word = 0
        cdef int i, word
        cdef uint64_t bits, allowed
        if preferred >= 0:
            first_word = preferred >> 6
            bits = self.words[first_word].bits.load(memory_order_seq_cst)
            while bits & self.allowed(first_word) & <uint64_t>1 << (preferred & 63):
                if self.words[first_word].bits.compare_exchange_weak(
                    bits, bits & ~(<uint64_t>1 << (preferred & 63)), memory_order_seq_cst
                ):
                    return preferred
        for i in range(self.num_words):
            word = first_word + i
            if word >= self.num_words:
                word -= self.num_words
            allowed = self.allowed(word)
            bits = self.words[word].bits.load(memory_order_seq_cst)
            while bits & allowed:
                if self.words[word].bits.compare_exchange_weak(
                    bits, bits & ~(<uint64_t>1 << lowest_bit(bits & allowed)), memory_order_seq_cst
                ):
                    return word * 64 + lowest_bit(bits & allowed)
        return -1

    cdef int claim_other_than(self, int avoided) noexcept nogil:
        """As `claim`, but never `avoided` (-1: any will do)."""
        cdef int word
        cdef uint64_t bits, allowed
        for word in range(self.num_words):
            allowed = self.allowed(word)
            if avoided >= 0 and avoided >> 6 == word:
                allowed &= ~(<uint64_t>1 << (avoided & 63))
            bits = self.words[word].bits.load(memory_order_seq_cst)
            while bits & allowed:
                if self.words[word].bits.compare_exchange_weak(
                    bits, bits & ~(<uint64_t>1 << lowest_bit(bits & allowed)), memory_order_seq_cst
                ):
                    return word * 64 + lowest_bit(bits & allowed)
        return -1

    cdef void release(self, int group) noexcept nogil:
        """Frees a group that the caller owns.

        seq_cst: publishes the owner's work to the next claim, and comes before the releaser's
        look at the queue (README, "No lost wake-up").
        """
        self.words[group >> 6].bits.fetch_or(<uint64_t>1 << (group & 63), memory_order_seq_cst)

    # Of the first 64 groups, which are all that an elastic context has: they lie in one word, so
    # several are claimed by one compare-and-swap, all or none. seq_cst as in claim and release.

    cdef uint64_t free_groups(self) noexcept nogil:
        """Those that may be claimed."""
        return self.words[0].bits.load(memory_order_seq_cst) & self.allowed(0)

    cdef bint claim_all(self, uint64_t groups) noexcept nogil:
        """Claims all of `groups`, a bit for each, or none."""
        return not groups & ~self.allowed(0) and self.claim_reserved(groups)

    # --- Reserving: README, "Claim and release" -------------------------------------------------

    cdef bint reserve(self, uint64_t groups) noexcept nogil:
        """From here on nobody else claims any of `groups`. False: others are reserved."""
        cdef uint64_t none = 0
        return self.reserved.compare_exchange_strong(none, groups, memory_order_seq_cst)

    cdef void unreserve(self) noexcept nogil:
        """Whoever calls it looks at the queue after that."""
        self.reserved.store(0, memory_order_seq_cst)

    cdef bint any_reserved(self, uint64_t groups) noexcept nogil:
        # relaxed: seen late, one more run is served first.
        return self.reserved.load(memory_order_relaxed) & groups != 0

    cdef uint64_t allowed(self, int word) noexcept nogil:
        return ~self.reserved.load(memory_order_seq_cst) if word == 0 else ~<uint64_t>0

    cdef bint claim_reserved(self, uint64_t groups) noexcept nogil:
        """claim_all for whoever has reserved them."""
        cdef uint64_t bits = self.words[0].bits.load(memory_order_seq_cst)
        while bits & groups == groups:
            if self.words[0].bits.compare_exchange_weak(bits, bits & ~groups, memory_order_seq_cst):
                return True
        return False

    cdef void release_all(self, uint64_t groups) noexcept nogil:
        self.words[0].bits.fetch_or(groups, memory_order_seq_cst)

    cdef int num_claimed(self) noexcept nogil:
        """How many groups have an owner; no snapshot of all words.

        seq_cst: a pusher that sees a group taken here may rely on its owner's look at the queue
        (README, "Who is woken").
        """
        cdef int word, num_free = 0
        for word in range(self.num_words):
            num_free += count_bits(self.words[word].bits.load(memory_order_seq_cst))
        return self.num_groups - num_free

    def try_claim(self, int preferred=-1) -> int | None:
        if not -1 <= preferred < self.num_groups:
            raise ValueError(f"no group {preferred}; there are {self.num_groups}")
        cdef int group = self.claim(preferred)
        return None if group < 0 else group

    def give_back(self, int group) -> None:
        if not 0 <= group < self.num_groups:
            raise ValueError(f"no group {group}; there are {self.num_groups}")
        self.release(group)
