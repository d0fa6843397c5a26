/* Section: Stopping a run
 * Property: a run that nobody wants any more ends, also if that comes before it, and no other does
 * Left out: groups: both runs are in one slot, one after the other
 * MUTANT_NO_WAIT: the owner clears the flag without waiting for registered stoppers (no O3)
 * MUTANT_CLEAR_THEN_WAIT: the owner clears the flag, then waits for them
 * MUTANT_LOOK_THEN_REGISTER: a stopper looks at the slot, then counts itself in
 * MUTANT_REASONS_THEN_CURRENT: the runner looks whether it is to stop, then publishes its run
 * MUTANT_FIND_THEN_REASON: a stopper looks where the request runs, then says why it is to stop
 * MUTANT_OWN_REASON: a stopper ends the run though somebody wants another request of it
 */

#define MEANT 1 /* a run of two requests, which never ends by itself; nobody wants either */
#define OTHER 2 /* the next run in the slot, which somebody wants */

byte current; /* 0: none */
byte num_stoppers;
bool is_terminated, flag; /* ours, and ORT's own */
bool has_group[2], has_reason[2]; /* of the requests of MEANT */
bool is_done;

proctype owner() {
    byte ran;
    bool is_stopped;
    for (ran : MEANT .. OTHER) {
        is_stopped = false;
#ifdef MUTANT_REASONS_THEN_CURRENT
        if :: ran == MEANT -> is_stopped = has_reason[0]; is_stopped = is_stopped && has_reason[1]
           :: else
        fi;
#endif
        if :: ran == MEANT -> has_group[0] = true; has_group[1] = true :: else fi;
        current = ran; /* O1 */
#ifndef MUTANT_REASONS_THEN_CURRENT
        if :: ran == MEANT -> is_stopped = has_reason[0]; is_stopped = is_stopped && has_reason[1]
           :: else
        fi; /* O1' */
#endif
        if
        :: is_stopped
        :: else -> /* inside ORT */
           if
           :: ran == MEANT -> flag
           :: else -> assert(!flag)
           fi
        fi;
        current = 0; /* O2 */
#ifdef MUTANT_CLEAR_THEN_WAIT
        if :: is_terminated -> is_terminated = false; flag = false :: else fi;
        num_stoppers == 0
#else
#ifndef MUTANT_NO_WAIT
        num_stoppers == 0; /* O3 */
#endif
        if :: is_terminated -> is_terminated = false; flag = false :: else fi
#endif
    };
    assert(!flag && !is_terminated);
    is_done = true
}

proctype stopper(bit mine) {
    byte seen;
    bool was_set, is_there, is_unwanted;
#ifdef MUTANT_FIND_THEN_REASON
    is_there = has_group[mine];
    has_reason[mine] = true;
#else
    has_reason[mine] = true; /* S0 */
    is_there = has_group[mine];
#endif
    if
    :: is_there ->
#ifdef MUTANT_LOOK_THEN_REGISTER
       seen = current;
       num_stoppers++; /* S1 */
#else
       num_stoppers++; /* S1 */
       seen = current; /* S2 */
#endif
       is_unwanted = (seen == MEANT) && has_reason[mine];
#ifndef MUTANT_OWN_REASON
       is_unwanted = is_unwanted && has_reason[1 - mine];
#endif
       if
       :: is_unwanted ->
          atomic { was_set = is_terminated; is_terminated = true };
          if
          :: !was_set -> atomic {
                assert(current != OTHER && has_reason[0] && has_reason[1]);
                flag = true
             }
          :: else
          fi
       :: else
       fi;
       num_stoppers--
    :: else
    fi
}

init {
    atomic { run owner(); run stopper(0); run stopper(1) }
    timeout;
    assert(is_done)
}

ltl the_run_ends { <> is_done }
