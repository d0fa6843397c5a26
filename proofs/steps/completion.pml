/* Section: Completion
 * Property: a caller that waits for its request returns, with the result, and what completes the
 *     request does not touch it after the caller may free it
 * Left out: timeouts and signals, after which a caller waits again
 * MUTANT_LOOK_THEN_COMPLETE: the completing side looks whether somebody waits, then completes
 * MUTANT_WAIT_BY_STORE: the caller says that it waits without looking whether it is over
 * MUTANT_COMPLETE_FIRST: the result is written after the exchange
 */

#include "futex.h"

mtype = { PENDING, WAITED_FOR, DONE };
mtype state = PENDING;
bool is_asleep, has_result, is_freed, has_returned;

proctype worker() {
    mtype before;
#ifdef MUTANT_COMPLETE_FIRST
    atomic { before = state; state = DONE };
    atomic { assert(!is_freed); has_result = true };
#else
    atomic { assert(!is_freed); has_result = true };
#ifdef MUTANT_LOOK_THEN_COMPLETE
    before = state;
    state = DONE;
#else
    atomic { before = state; state = DONE };
#endif
#endif
    if
    :: before == WAITED_FOR -> futex_wake(is_asleep) /* by address: nothing is touched */
    :: else
    fi
}

proctype caller() {
    byte i;
    do
    :: i < 2 -> /* a second wait follows one that a signal has interrupted */
       i++;
#ifdef MUTANT_WAIT_BY_STORE
       state = WAITED_FOR;
#else
       atomic { if :: state == PENDING -> state = WAITED_FOR :: else fi };
#endif
       if
       :: state == DONE -> break
       :: else
       fi
    :: i == 2 -> futex_wait(is_asleep, state, WAITED_FOR); if :: state == DONE -> break :: else fi
    od;
    assert(has_result);
    is_freed = true;
    has_returned = true
}

init {
    atomic { run worker(); run caller() }
    timeout;
    assert(has_returned)
}

ltl the_caller_returns { <> has_returned }
