/* Section: Park and wake
 * Property: each grant of a group is served by its worker, no two grants meet, and the worker
 *     ends after the stop
 * Left out: how long a worker spins: it parks at any time
 * MUTANT_AWAKE_LATE: a worker swaps GRANTED for AWAKE after it has served
 * MUTANT_PARK_BY_STORE: a worker goes to PARKED without comparing
 * MUTANT_AWAKE_BY_STORE: a worker goes to AWAKE without comparing
 * MUTANT_GRANT_WITHOUT_OWNING: a thread wakes a worker whose group it does not own
 */

#include "futex.h"

#define OWNERS 2
#define EACH 2

mtype = { PARKED, GRANTED, AWAKE, STOPPING };
mtype word = AWAKE;
bool is_free = true, is_asleep;
byte num_granted, num_served, num_done, num_owning = OWNERS;
bool has_ended;

inline wake() {
    seen = word;
    do
    :: seen == STOPPING -> break
    :: else ->
       sleeps = (seen == PARKED);
       atomic {
           won = (word == seen);
           if
           :: won -> assert(word != GRANTED); word = GRANTED; num_granted++
           :: else -> seen = word
           fi
       };
       if
       :: won && sleeps -> futex_wake(is_asleep); break
       :: won && !sleeps -> break
       :: else
       fi
    od
}

proctype owner() {
    byte i;
    mtype seen;
    bool sleeps, won;
    for (i : 1 .. EACH) {
#ifdef MUTANT_GRANT_WITHOUT_OWNING
        wake()
#else
        if
        :: atomic { is_free -> is_free = false } -> wake()
        :: else
        fi
#endif
    };
    num_owning--
}

proctype worker() {
    mtype signal;
    do
    :: signal = word;
       if
       :: signal == STOPPING -> break
       :: signal == GRANTED ->
#ifdef MUTANT_AWAKE_LATE
          num_served++;
          is_free = true; /* the next owner may grant it again at once */
          word = AWAKE
#else
#ifdef MUTANT_AWAKE_BY_STORE
          word = AWAKE;
#else
          atomic { if :: word == GRANTED -> word = AWAKE :: else -> goto again fi };
#endif
          num_served++;
          is_free = true
#endif
       :: signal == PARKED -> futex_wait(is_asleep, word, PARKED)
       :: signal == AWAKE -> /* has spun for long enough */
#ifdef MUTANT_PARK_BY_STORE
          word = PARKED
#else
          atomic { if :: word == AWAKE -> word = PARKED :: else fi }
#endif
       fi;
again: skip
    od;
    has_ended = true
}

/* No request is left, but the worker may be between its release and its word, or have been woken for
   a request that another has served. */
proctype stopper() {
    bool is_served = true;
    if :: true :: is_served = false fi;
    num_owning == 0;
    if :: is_served -> num_served == num_granted :: else fi;
    word = STOPPING;
    is_asleep = false
}

init {
    byte i;
    atomic { for (i : 1 .. OWNERS) { run owner() } run worker(); run stopper() }
    timeout;
    assert(has_ended)
}

ltl it_ends { <> has_ended }
