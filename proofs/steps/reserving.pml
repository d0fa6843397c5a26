/* Section: Claim and release
 * Property: a core is in one run at a time; the measurement ends, measured or given up; every
 *     request is served
 * Left out: wider groups but the measured one, which is both leaves
 * MUTANT_RELEASE_WITHOUT_LOOK: a worker that gives up its reserved leaf does not look again
 * MUTANT_UNRESERVE_WITHOUT_LOOK: whoever ends the reservation does not look at the queue
 * MUTANT_LOOK_THEN_UNRESERVE: it looks, then ends the reservation
 * MUTANT_MEASURE_WITHOUT_CLAIM: the measurement takes reserved leaves for its own
 */

#define LEAVES 2
#define REQUESTS 2

byte bits = 3; /* a bit for each free leaf: one word */
byte reserved;
byte num_published, head; /* a push is one step: a hidden item is wake_up.pml's */
bool is_granted[LEAVES];
byte num_served;
bool has_measured, has_given_up;
byte owner[LEAVES]; /* how many use it */

#define HAS_ITEMS (head < num_published)

inline claim() {
    woken = LEAVES;
    allowed = 3 & ~reserved; /* read first, so what is claimed below may have been reserved since */
    atomic {
        if
        :: bits & allowed & 1 -> bits = bits & ~1; woken = 0
        :: !(bits & allowed & 1) && (bits & allowed & 2) -> bits = bits & ~2; woken = 1
        :: else
        fi
    }
}

inline kick() {
    claim(); /* S2 */
    if :: woken < LEAVES -> is_granted[woken] = true :: else fi
}

inline retry() {
    if :: HAS_ITEMS -> kick() :: else fi
}

inline end_reservation() {
#ifdef MUTANT_LOOK_THEN_UNRESERVE
    retry();
    reserved = 0
#else
    reserved = 0; /* U1 */
#ifndef MUTANT_UNRESERVE_WITHOUT_LOOK
    retry() /* U2 */
#endif
#endif
}

proctype pusher() {
    byte woken, allowed;
    num_published++; /* S1 */
    kick()
}

proctype worker(byte leaf) {
    byte woken, allowed;
    do
    :: is_granted[leaf] -> is_granted[leaf] = false;
serve: do
       :: reserved & (1 << leaf) ->
          bits = bits | (1 << leaf);
#ifndef MUTANT_RELEASE_WITHOUT_LOOK
          retry();
#endif
          goto next
       :: else ->
          if
          :: atomic { HAS_ITEMS -> head++ };
             owner[leaf]++;
             assert(owner[leaf] == 1);
             if :: HAS_ITEMS -> kick() :: else fi;
             owner[leaf]--;
             num_served++
          :: else -> break
          fi
       od;
       bits = bits | (1 << leaf);
       if
       :: HAS_ITEMS ->
          allowed = 3 & ~reserved;
          if
          :: atomic { bits & allowed & (1 << leaf) -> bits = bits & ~(1 << leaf) } -> goto serve
          :: else -> kick()
          fi
       :: else
       fi;
next:  skip
    od
}

proctype measurer() {
    byte woken, allowed;
    reserved = 3;
    do
#ifdef MUTANT_MEASURE_WITHOUT_CLAIM
    :: true ->
#else
    :: atomic { bits == 3 -> bits = 0 } ->
#endif
       atomic { owner[0]++; owner[1]++; assert(owner[0] == 1 && owner[1] == 1) };
       atomic { owner[0]--; owner[1]-- };
       bits = 3;
       end_reservation();
       has_measured = true;
       break
    :: bits != 3 -> /* it has waited long enough */
       end_reservation();
       has_given_up = true;
       break
    od
}

init {
    atomic {
        run pusher(); run pusher();
        run worker(0); run worker(1);
        run measurer()
    }
    timeout;
    assert(num_served == REQUESTS && (has_measured || has_given_up))
}
