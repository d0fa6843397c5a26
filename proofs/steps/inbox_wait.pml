/* Section: Inboxes
 * Property: a thread that sleeps in `wait` gets all that is posted, and hears of a poke
 * Left out: who frees the inbox (inbox_lifetime.pml); nodes are counted
 * MUTANT_LOOK_THEN_REGISTER: the taker looks at the list, then says that it waits
 * MUTANT_NOTIFY_THEN_POST: a poster looks whether somebody waits, then publishes
 * MUTANT_POKE_THEN_FLAG: a poke notifies, then sets its flag
 */

#include "futex.h"

#define POSTERS 2
#define EACH 2

byte num_there; /* nodes in the list */
bool is_waited_for, is_poked, is_asleep;
bool wants_end, has_ended;
byte num_taken;

inline notify() {
    atomic { was_waited_for = is_waited_for; is_waited_for = false };
    if :: was_waited_for -> futex_wake(is_asleep) :: else fi
}

proctype poster() {
    byte i, before;
    bool was_waited_for;
    for (i : 1 .. EACH) {
#ifdef MUTANT_NOTIFY_THEN_POST
        if :: num_there == 0 -> notify() :: else fi;
        num_there++
#else
        atomic { before = num_there; num_there++ }; /* P1 */
        if :: before == 0 -> notify() :: else fi /* P2 */
#endif
    }
}

proctype poker() {
    bool was_waited_for;
    num_taken == POSTERS * EACH; /* that wakes nobody who has missed a notification */
    wants_end = true;
#ifdef MUTANT_POKE_THEN_FLAG
    notify();
    is_poked = true
#else
    is_poked = true;
    notify()
#endif
}

proctype taker() {
    byte found;
    bool is_last;
    do
    :: is_last = wants_end;
       atomic { found = num_there; num_there = 0 };
       num_taken = num_taken + found;
       if :: is_last -> break :: else fi;
#ifdef MUTANT_LOOK_THEN_REGISTER
       if
       :: num_there == 0 && !is_poked ->
          is_waited_for = true;
          futex_wait(is_asleep, is_waited_for, true)
       :: else
       fi;
#else
       is_waited_for = true; /* T1 */
       if
       :: num_there == 0 -> /* T2 */
          if :: !is_poked -> futex_wait(is_asleep, is_waited_for, true) :: else fi
       :: else
       fi;
#endif
       is_waited_for = false;
       is_poked = false
    od;
    has_ended = true
}

init {
    atomic { byte i; for (i : 1 .. POSTERS) { run poster() } run poker(); run taker() }
    timeout;
    assert(has_ended && num_taken == POSTERS * EACH)
}

ltl all_arrives { <> (has_ended && num_taken == POSTERS * EACH) }
