/* Section: Stopping a run
 * Property: a stop ends the run that it means, also if it comes before the run, and no other
 * Left out: groups: both requests run in one slot, one after the other
 * MUTANT_NO_WAIT: the owner clears the flag without waiting for registered stoppers (no O3)
 * MUTANT_CLEAR_THEN_WAIT: the owner clears the flag, then waits for them
 * MUTANT_LOOK_THEN_REGISTER: a stopper looks at the slot, then counts itself in
 * MUTANT_REASON_THEN_CURRENT: the runner looks whether it is to stop, then publishes its run
 * MUTANT_FIND_THEN_REASON: a stopper looks where the request runs, then says why it is to stop
 */

#define MEANT 1 /* a run that never ends by itself; two threads want it stopped */
#define OTHER 2 /* the next run in the slot */

byte current; /* 0: none */
byte num_stoppers;
bool is_terminated, flag; /* ours, and ORT's own */
bool has_group[3], has_reason[3];
bool is_done;

proctype owner() {
    byte request;
    bool is_stopped;
    for (request : MEANT .. OTHER) {
#ifdef MUTANT_REASON_THEN_CURRENT
        is_stopped = has_reason[request];
#endif
        has_group[request] = true;
        current = request; /* O1 */
#ifndef MUTANT_REASON_THEN_CURRENT
        is_stopped = has_reason[request];
#endif
        if
        :: is_stopped
        :: else -> /* inside ORT */
           if
           :: request == MEANT -> flag
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

proctype stopper() {
    bool was_set, is_there, is_mine;
#ifdef MUTANT_FIND_THEN_REASON
    is_there = has_group[MEANT];
    has_reason[MEANT] = true;
#else
    has_reason[MEANT] = true;
    is_there = has_group[MEANT];
#endif
    if
    :: is_there ->
#ifdef MUTANT_LOOK_THEN_REGISTER
       is_mine = (current == MEANT);
       num_stoppers++; /* S1 */
#else
       num_stoppers++; /* S1 */
       is_mine = (current == MEANT); /* S2 */
#endif
       if
       :: is_mine ->
          atomic { was_set = is_terminated; is_terminated = true };
          if :: !was_set -> flag = true :: else fi
       :: else
       fi;
       num_stoppers--
    :: else
    fi
}

init {
    atomic { run owner(); run stopper(); run stopper() }
    timeout;
    assert(is_done)
}

ltl the_run_ends { <> is_done }
