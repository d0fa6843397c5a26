/* Section: Shutdown
 * Property: no run uses a session that has been freed, and close comes to its end
 * Left out: the slices in which close waits, to hear signals
 * MUTANT_LOOK_THEN_COUNT: a request looks at `closing`, then counts itself in
 * MUTANT_CLOSE_LATE: the closer waits for those that are counted in, then sets `closing`
 * MUTANT_LOOK_THEN_LEAVE: a request looks whether the model closes, then counts itself out
 * MUTANT_LEAVE_EARLY: a request is counted out before its run
 */

#include "futex.h"

#define CALLERS 3

byte in_flight;
bool is_closing, is_asleep, is_freed, is_closed;

inline leave() {
#ifdef MUTANT_LOOK_THEN_LEAVE
    if :: is_closing -> is_late = true :: else fi;
    in_flight--;
    if :: is_late -> futex_wake(is_asleep) :: else fi
#else
    in_flight--;
    if :: is_closing -> futex_wake(is_asleep) :: else fi
#endif
}

proctype caller() {
    bool is_refused, is_late;
#ifdef MUTANT_LOOK_THEN_COUNT
    is_refused = is_closing;
    if :: !is_refused -> in_flight++ :: else fi;
#else
    in_flight++;
    is_refused = is_closing;
    if :: is_refused -> leave() :: else fi;
#endif
    if
    :: !is_refused ->
#ifdef MUTANT_LEAVE_EARLY
       leave();
#endif
       assert(!is_freed); /* the run */
#ifndef MUTANT_LEAVE_EARLY
       leave()
#endif
    :: else
    fi
}

proctype closer() {
    byte seen;
#ifndef MUTANT_CLOSE_LATE
    is_closing = true;
#endif
    do
    :: seen = in_flight;
       if
       :: seen == 0 -> break
       :: else -> futex_wait(is_asleep, in_flight, seen)
       fi
    od;
#ifdef MUTANT_CLOSE_LATE
    is_closing = true;
#endif
    is_freed = true;
    is_closed = true
}

init {
    byte i;
    atomic { for (i : 1 .. CALLERS) { run caller() } run closer() }
    timeout;
    assert(is_closed)
}

ltl close_ends { <> is_closed }
