/* Section: No lost wake-up
 * Property: every request is served, however long a pusher stands between winning its position and
 *     publishing it
 * Left out: the queue's slots (queue.pml); a pop is one step; priorities
 * MUTANT_LOOK_THEN_PUSH: a pusher looks for a free group, then publishes
 * MUTANT_LOOK_THEN_RELEASE: a worker looks at the queue, then frees its group
 * MUTANT_LEAVE_WITHOUT_LOOK: an inline caller leaves its group without looking
 */

#define GROUPS 2
#define PUSHERS 2

bool is_free[GROUPS] = true; /* each in a word of its own, so a scan is no snapshot */
bool is_published[PUSHERS]; /* by position */
byte head, tail, places;
bool is_granted[GROUPS];
byte num_served;

#define HAS_ITEMS (head < PUSHERS && is_published[head])

inline claim(preferred, got) {
    got = GROUPS;
    if
    :: atomic { is_free[preferred] -> is_free[preferred] = false; got = preferred }
    :: else ->
       if
       :: atomic { is_free[1 - preferred] -> is_free[1 - preferred] = false; got = 1 - preferred }
       :: else
       fi
    fi
}

inline kick() {
    claim(0, woken);
    if :: woken < GROUPS -> is_granted[woken] = true :: else fi
}

proctype pusher() {
    byte position, woken;
    places++;
#ifdef MUTANT_LOOK_THEN_PUSH
    kick();
#endif
    atomic { position = tail; tail++ };
    is_published[position] = true; /* S1 */
#ifndef MUTANT_LOOK_THEN_PUSH
    kick() /* S2 */
#endif
}

proctype worker(byte group) {
    byte mine, woken;
    bool is_drained;
    do
    :: is_granted[group] -> is_granted[group] = false;
       assert(!is_free[group]);
serve: is_drained = false;
       do
       :: atomic { HAS_ITEMS -> head++ };
          places--;
          if :: HAS_ITEMS -> kick() :: else fi;
          num_served++;
          is_drained = !HAS_ITEMS;
          if :: is_drained -> break :: else fi
       :: else -> break
       od;
#ifdef MUTANT_LOOK_THEN_RELEASE
       if
       :: HAS_ITEMS -> goto serve
       :: else -> is_free[group] = true
       fi
#else
       is_free[group] = true; /* S3 */
       if
       :: HAS_ITEMS -> /* S4 */
          claim(group, mine);
          if
          :: mine == group -> goto serve
          :: mine < GROUPS && mine != group -> is_granted[mine] = true
          :: else
          fi
       :: else
       fi
#endif
    od
}

inline leave(group) {
    if
    :: group < GROUPS ->
       is_free[group] = true; /* S3 */
#ifndef MUTANT_LEAVE_WITHOUT_LOOK
       if :: places > 0 -> kick() :: else fi /* S4: a place is taken before the push */
#endif
    :: else
    fi
}

/* Two, one of which comes and goes while the other runs. */
proctype inline_callers() {
    byte first, second, woken;
    places == 0;
    claim(1, first);
    claim(0, second);
    leave(second);
    leave(first)
}

init {
    byte i;
    atomic {
        for (i : 1 .. PUSHERS) { run pusher() }
        run worker(0); run worker(1);
        run inline_callers()
    }
    timeout;
    assert(num_served == PUSHERS)
}

ltl all_are_served { <> (num_served == PUSHERS) }
