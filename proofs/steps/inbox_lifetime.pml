/* Section: Inboxes
 * Property: no poster touches an inbox that has been freed, and it is freed
 * Left out: how the consumer learns of nodes: it looks at any time
 * MUTANT_COUNT_LATE: a poster counts itself in after it has published its node
 * MUTANT_RELEASE_THEN_NOTIFY: a poster counts itself out, then notifies
 * MUTANT_FREE_AT_ONCE: the destructor does not wait
 */

#define POSTERS 2

byte num_there, num_posting;
bool is_freed;

#define TOUCH assert(!is_freed)

proctype poster() {
    byte before;
#ifndef MUTANT_COUNT_LATE
    atomic { TOUCH; num_posting++ };
#endif
    atomic { TOUCH; before = num_there; num_there++ }; /* the node, and with it the inbox, may go */
#ifdef MUTANT_COUNT_LATE
    atomic { TOUCH; num_posting++ };
#endif
#ifdef MUTANT_RELEASE_THEN_NOTIFY
    atomic { TOUCH; num_posting-- };
    if :: before == 0 -> TOUCH :: else fi
#else
    if :: before == 0 -> TOUCH :: else fi; /* notify */
    atomic { TOUCH; num_posting-- }
#endif
}

proctype consumer() {
    byte num_taken;
    do
    :: num_taken < POSTERS ->
       atomic { num_there > 0 -> num_taken = num_taken + num_there; num_there = 0 }
    :: else -> break
    od;
#ifndef MUTANT_FREE_AT_ONCE
    num_posting == 0;
#endif
    is_freed = true
}

init {
    byte i;
    atomic { for (i : 1 .. POSTERS) { run poster() } run consumer() }
    timeout;
    assert(is_freed)
}
