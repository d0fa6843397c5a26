/* Section: Who is woken
 * Property: every request is served, though a producer leaves the worker of its own core asleep and
 *     never comes back to what it has queued
 * Left out: other groups: a pusher that spares its own finds one of them free, or taken by an owner
 *     who will look; the amounts of work by which a kick decides: it may spare the worker at any time
 * MUTANT_SPARE_ALWAYS: the worker is left asleep while no group has an owner
 * MUTANT_COUNT_THEN_PUSH: the producer looks whether a group has an owner, then publishes
 * MUTANT_LEAVE_WITHOUT_LOOK: a helper leaves the group that it served from without looking
 */

#define REQUESTS 3

bool is_free = true;
bool is_published[REQUESTS];
byte head, tail, places;
bool is_granted;
byte num_served;

#define HAS_ITEMS (head < REQUESTS && is_published[head])
inline wake() {
    if
    :: atomic { is_free -> is_free = false } -> is_granted = true
    :: else
    fi
}

inline kick_but_spare() {
    if :: is_spared = true :: is_spared = false fi;
#ifdef MUTANT_COUNT_THEN_PUSH
    if :: is_spared && !was_claimed -> is_spared = false :: else fi;
#else
#ifndef MUTANT_SPARE_ALWAYS
    if :: is_spared && is_free -> is_spared = false :: else fi; /* S2: nobody has a group */
#endif
#endif
    if :: !is_spared -> wake() :: else fi
}

inline push() {
    places++;
    atomic { position = tail; tail++ };
    is_published[position] = true
}

inline leave() {
    is_free = true;
#ifndef MUTANT_LEAVE_WITHOUT_LOOK
    if :: places > 0 -> kick_but_spare() :: else fi
#endif
}

proctype producer() {
    byte position, i;
    bool is_spared, was_claimed;
    for (i : 1 .. 2) {
#ifdef MUTANT_COUNT_THEN_PUSH
        was_claimed = !is_free;
#endif
        push();
        kick_but_spare()
    }
}

proctype other_pusher() {
    byte position;
    push();
    wake()
}

/* A mapping thread: serves at most one request, from a group of its own. */
proctype helper() {
    bool is_spared, was_claimed = true;
    if
    :: atomic { is_free -> is_free = false } ->
       if
       :: atomic { HAS_ITEMS -> head++ } -> places--; num_served++
       :: else
       fi;
       leave()
    :: else
    fi
}

proctype worker() {
    do
    :: is_granted -> is_granted = false;
serve: do
       :: atomic { HAS_ITEMS -> head++ };
          places--;
          num_served++
       :: else -> break
       od;
       is_free = true;
       if
       :: HAS_ITEMS ->
          if
          :: atomic { is_free -> is_free = false } -> goto serve
          :: else
          fi
       :: else
       fi
    od
}

init {
    atomic {
        run producer(); run other_pusher(); run helper();
        run worker()
    }
    timeout;
    assert(num_served == REQUESTS)
}
