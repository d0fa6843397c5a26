"""How far apart two CPUs are: the time that a cache line takes from one to the other and back.

README.md, "Ping-pong". Any two threads may play, once each is on the CPU that is meant.
"""

cimport cython
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.pins cimport one_cpu
from deepsched.runtime.posix cimport (
    MAX_CPUS, CpuMask, aligned_alloc, pthread_join, pthread_t, start_thread,
)
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from libcpp.atomic cimport memory_order_relaxed

import os

from deepsched.errors import ThreadError

cdef enum:
    # Round trips between two looks at the clock, which takes 20 to 60 ns: below 3 % of a batch
    # even where two hardware threads share a core.
    BATCH_ROUNDS = 32

    # Looks at the partner's line between two looks at the clock. A look that hits the own cache
    # takes a nanosecond or two, so the end comes within microseconds of the patience's, and few
    # round trips have a look at the clock in them.
    LOOKS = 512


cdef bint _await_echo(PingPong* lines, uint64_t throw, uint64_t ends_ns) noexcept nogil:
    cdef int looks = LOOKS
    while lines.echo.load(memory_order_relaxed) != throw:
        looks -= 1
        if looks == 0:
            if now_ns() >= ends_ns:
                return False
            looks = LOOKS
    return True


cdef uint64_t ping(PingPong* lines, int num_rounds, uint64_t patience_ns) noexcept nogil:
    """Throws, and waits for each echo. Returns the round trip in ns; 0 if nobody played it to the
    end within `patience_ns`, after which it returns in any case. No pause hint while it looks: on
    Intel one is longer than a round trip.

    The least mean of the batches: whatever disturbs a batch (an interrupt, a thread or a virtual
    CPU that is taken off, the partner's arrival, a clock that still speeds up) adds time, and
    nothing takes time off the way of a line. A mean within the batch: the clock is too coarse for
    one round trip, and single ones vary with the phase of the two loops.

    Both lines carry nothing but their own number, so all accesses are relaxed: the coherence of
    one atomic, and a throw's number never coming twice, are all that is needed. An echo of `throw`
    can only come from a thread that saw it thrown, however late others still write. Who hands the
    lines from one pinger to the next orders the two, as whoever claims and releases does.
    """
    cdef uint64_t began = now_ns()
    cdef uint64_t ends_ns = began + patience_ns
    cdef uint64_t now
    cdef uint64_t least_ns = 0
    cdef uint64_t throw = (lines.ball.load(memory_order_relaxed) | 1) + 2
    cdef int rounds_left = num_rounds
    cdef int batch = 0
    lines.ball.store(throw, memory_order_relaxed)
    # The first echo says that both are here; the game begins behind it.
    cdef bint is_playing = _await_echo(lines, throw, ends_ns)
    began = now_ns()
    while is_playing and rounds_left > 0:
        for batch in range(BATCH_ROUNDS):
            throw += 2
            lines.ball.store(throw, memory_order_relaxed)
            is_playing = _await_echo(lines, throw, ends_ns)
            if not is_playing:
                break
        now = now_ns()
        if least_ns == 0 or now - began < least_ns:
            least_ns = now - began
        is_playing = is_playing and now < ends_ns
        began = now
        rounds_left -= BATCH_ROUNDS
    lines.ball.store(throw + 1, memory_order_relaxed)  # over, whoever still looks
    return (least_ns + BATCH_ROUNDS // 2) // BATCH_ROUNDS if is_playing else 0


cdef bint pong(PingPong* lines, uint64_t patience_ns) noexcept nogil:
    """Answers throws until the game is over. Returns whether there was one that came to its end;
    after `patience_ns` it returns in any case, and the pinger's patience ends the game there.

    A game whose pinger has left ends with an even number, which a later ponger takes for "not
    begun". One that misses that number finds the next game's throws, and answers those.
    """
    cdef uint64_t ends_ns = now_ns() + patience_ns
    cdef uint64_t answered = 0
    cdef uint64_t throw
    cdef int looks = LOOKS
    while True:
        throw = lines.ball.load(memory_order_relaxed)
        if throw & 1:
            if throw != answered:
                lines.echo.store(throw, memory_order_relaxed)
                answered = throw
        elif answered:
            return True
        looks -= 1
        if looks == 0:
            if now_ns() >= ends_ns:
                return False
            looks = LOOKS


@cython.final
cdef class PingPongTable:
    """The two lines, for as long as this lives."""

    def __cinit__(self):
        self.lines = <PingPong*>aligned_alloc(PING_PONG_ALIGNMENT, sizeof(PingPong))
        if self.lines == NULL:
            raise MemoryError("no memory for two cache lines")
        memset(<void*>self.lines, 0, sizeof(PingPong))

    def __dealloc__(self):
        free(self.lines)

    def ping(self, int num_rounds, uint64_t patience_ns) -> int:
        cdef uint64_t trip_ns
        with nogil:
            trip_ns = ping(self.lines, num_rounds, patience_ns)
        return trip_ns

    def pong(self, uint64_t patience_ns) -> bool:
        cdef bint played
        with nogil:
            played = pong(self.lines, patience_ns)
        return played


# --- Two CPUs ---------------------------------------------------------------------------------


cdef struct Player:
    PingPong* lines
    int num_rounds
    uint64_t patience_ns
    uint64_t trip_ns  # the pinger's result


cdef void* _ping_main(void* argument) noexcept nogil:
    cdef Player* player = <Player*>argument
    player.trip_ns = ping(player.lines, player.num_rounds, player.patience_ns)
    return NULL


cdef void* _pong_main(void* argument) noexcept nogil:
    cdef Player* player = <Player*>argument
    pong(player.lines, player.patience_ns)
    return NULL


def round_trip_ns(
    int cpu_a, int cpu_b, int num_rounds=1024, uint64_t patience_ns=20_000_000
) -> int | None:
    """The round trip of a cache line between two CPUs (OS numbers), in ns.

    Takes a quarter of a millisecond if both are idle. None if the two were not on their CPUs
    together for long enough within `patience_ns`, because others were.

    Raises:
        ThreadError: a CPU is not there, or not for this process.
        ValueError: a number that no CPU can have, or twice the same.
    """
    cdef PingPongTable table
    cdef Player pinger, ponger
    cdef CpuMask mask
    cdef pthread_t ping_thread, pong_thread
    cdef int error
    if not (0 <= cpu_a < MAX_CPUS and 0 <= cpu_b < MAX_CPUS) or cpu_a == cpu_b:
        raise ValueError(
            f"two different CPUs from 0 to {MAX_CPUS - 1} are needed, got {cpu_a} and {cpu_b}"
        )
    table = PingPongTable()
    pinger = ponger = Player(table.lines, num_rounds, patience_ns, 0)
    with nogil:
        one_cpu(&mask, cpu_b)
        error = start_thread(&pong_thread, b"ds-pong", &mask, _pong_main, &ponger)
        if error == 0:
            one_cpu(&mask, cpu_a)
            error = start_thread(&ping_thread, b"ds-ping", &mask, _ping_main, &pinger)
            if error == 0:
                pthread_join(ping_thread, NULL)
            pthread_join(pong_thread, NULL)  # within its patience, whether the other came or not
    if error:
        raise ThreadError(
            error, f"could not start threads on CPUs {cpu_a} and {cpu_b}: {os.strerror(error)}"
        )
    return pinger.trip_ns or None
