/* Section: Moving
 * Property: each request runs once, on sessions that are there, none is refused for the move, and the
 *     drain comes to its end
 * Left out: closing at the same time (shutdown.pml); the queues: a request that is counted in runs
 * MUTANT_LOOK_THEN_COUNT: a request looks at the model's state, then counts itself in
 * MUTANT_MOVED_FIRST: the mover sets MOVED, then the successor
 * MUTANT_CLOSE_AT_ONCE: the old model is closed without waiting for what it has accepted
 */

#define CALLERS 3
#define OLD 0
#define NEW 1
#define NONE 2

byte in_flight[2], num_served;
bool is_moved, is_closed, is_drained;
byte successor = NONE;

proctype caller() {
    byte model = OLD;
    bool was_moved;
    do
    ::
#ifdef MUTANT_LOOK_THEN_COUNT
       was_moved = (model == OLD && is_moved);
       in_flight[model]++;
#else
       in_flight[model]++;
       was_moved = (model == OLD && is_moved);
#endif
       if
       :: was_moved ->
          in_flight[model]--;
          assert(successor != NONE);
          model = successor
       :: else -> break
       fi
    od;
    assert(model == NEW || !is_closed); /* the run */
    num_served++;
    in_flight[model]--
}

proctype mover() {
#ifdef MUTANT_MOVED_FIRST
    is_moved = true;
    successor = NEW;
#else
    successor = NEW;
    is_moved = true;
#endif
#ifndef MUTANT_CLOSE_AT_ONCE
    in_flight[OLD] == 0;
#endif
    is_closed = true;
    is_drained = true
}

init {
    byte i;
    atomic { for (i : 1 .. CALLERS) { run caller() } run mover() }
    timeout;
    assert(num_served == CALLERS && is_drained)
}

ltl the_drain_ends { <> (num_served == CALLERS && is_drained) }
