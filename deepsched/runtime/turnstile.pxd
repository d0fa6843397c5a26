from deepsched.runtime.request cimport ModelState, RequestState
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef extern from *:
    """
    #include <cstdint>
    #include <mutex>

    #ifdef Py_GIL_DISABLED
    #define DEEPSCHED_HAS_GIL 0
    #else
    #define DEEPSCHED_HAS_GIL 1
    #endif

    struct deepsched_turn {
        uint64_t turnstile, lease, until_ns, left_ns;
        int slot;
    };
    /* The calling thread's; zeroed when the thread starts. */
    static inline deepsched_turn* deepsched_own_turn() {
        static thread_local deepsched_turn turn;
        return &turn;
    }
    """
    const bint HAS_GIL "DEEPSCHED_HAS_GIL"

    ctypedef struct Turn "deepsched_turn":
        # What a thread remembers of its last call in a crowd.
        uint64_t turnstile  # whose crowd
        uint64_t lease  # the lease that it had there; 0: none
        uint64_t until_ns  # of that
        uint64_t left_ns  # when the call was over
        int slot  # where that lease is

    Turn* own_turn "deepsched_own_turn"() noexcept nogil

    # Cython's own lets lock() throw, for which it needs the GIL.
    cdef cppclass mutex "std::mutex":
        void lock() noexcept nogil
        void unlock() noexcept nogil

cdef enum:
    NUM_RANKS = 3  # for priority 1, 0 and -1
    # Up to so many callers for each lease, or stream, the GIL's own hand-over is as good as ours.
    FEW_CALLERS = 2
    # Runs from here on that may go together save more that way than by turns, which leave few in
    # the queue.
    LONG_TOGETHER_NS = 12_000

cdef struct Lease:
    atomic[uint64_t] number  # 0: free
    uint64_t until_ns

cdef struct Waiter:
    # A parked caller, in its frame. Under the lock, but for looks at `word`.
    Waiter* previous
    Waiter* next
    int rank
    uint64_t lease  # what it has been granted,
    int slot  # and where that is
    atomic[uint32_t] word

cdef struct Line:
    Waiter* first
    Waiter* last

cdef class Turnstile:
    cdef uint64_t id
    cdef int num_slots
    cdef atomic[int] num_inside  # callers between come() and go(); changes under the GIL
    cdef atomic[uint32_t] num_waiting  # this and the next change under the lock
    cdef atomic[uint64_t] num_granted
    cdef mutex lock
    # Under the lock:
    cdef Lease* slots
    cdef int num_leased
    cdef int most  # how many leases there may be now
    cdef Line[NUM_RANKS] lines
    cdef Waiter* watcher

    cdef bint come(self, RequestState* request) noexcept
    cdef void go(self, RequestState* request) noexcept
    cdef bint wait_turn(self, RequestState* request, bint hears_signals) noexcept nogil
    cpdef void dismiss_all(self) noexcept nogil
    cdef bint is_crowded(self, ModelState* model) noexcept
    cdef int num_callers(self) noexcept nogil
    cdef int num_useful(self, ModelState* model) noexcept nogil
    cdef bint holds_lease(self, Turn* turn) noexcept nogil
    cdef void arrive(self, Waiter* me, Turn* turn, int priority, int most, uint64_t now) noexcept nogil
    cdef void look(self, uint64_t now) noexcept nogil
    cdef bint withdraw(self, Waiter* me, uint64_t now) noexcept nogil
    cdef void settle(self, uint64_t now) noexcept nogil
    cdef int find_slot(self, uint64_t now) noexcept nogil
    cdef Waiter* next_in_line(self) noexcept nogil
    cdef void take_out(self, Waiter* waiter, uint32_t word) noexcept nogil
