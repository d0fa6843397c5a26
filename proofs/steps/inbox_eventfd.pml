/* Section: Inboxes
 * Property: an event loop that polls the eventfd takes all that is posted, though a notification is
 *     deferred, or left to whoever found the list empty
 * Left out: what an eventfd counts, which nobody reads
 * MUTANT_TAKE_THEN_READ: the loop takes the list, then reads the eventfd
 * MUTANT_FORGET_DEFERRED: a worker parks without the notification that it owes
 * MUTANT_NOTIFY_THEN_POST: a poster writes to the eventfd, then publishes
 */

#define POSTERS 2
#define EACH 2

byte num_there;
bool is_readable;
byte num_taken;

proctype poster() {
    byte i, before;
    bool owes;
    for (i : 1 .. EACH) {
#ifdef MUTANT_NOTIFY_THEN_POST
        if :: num_there == 0 -> is_readable = true :: else fi;
        num_there++
#else
        atomic { before = num_there; num_there++ };
        if :: before == 0 -> owes = true :: else fi;
        if
        :: owes -> is_readable = true; owes = false
        :: true /* deferred */
        fi
#endif
    };
#ifndef MUTANT_FORGET_DEFERRED
    if :: owes -> is_readable = true :: else fi
#endif
}

proctype loop() {
    byte found;
    do
    :: is_readable ->
#ifdef MUTANT_TAKE_THEN_READ
       atomic { found = num_there; num_there = 0 };
       num_taken = num_taken + found;
       is_readable = false
#else
       is_readable = false;
       atomic { found = num_there; num_there = 0 };
       num_taken = num_taken + found
#endif
    od
}

init {
    atomic { byte i; for (i : 1 .. POSTERS) { run poster() } run loop() }
    timeout;
    assert(num_taken == POSTERS * EACH)
}

ltl all_arrives { <> (num_taken == POSTERS * EACH) }
