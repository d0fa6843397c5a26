/* Section: Tracing
 * Property: nobody writes to a trace that is read or freed, a request that ends while one trace is on
 *     is in it, and the stop comes to its end though requests go on ending
 * Left out: room: a trace holds all entries
 * MUTANT_READ_THEN_COUNT: a writer reads the pointer, then counts itself in
 * MUTANT_STOP_AT_ONCE: who stops does not wait for writers
 * MUTANT_WAIT_THEN_TAKE: who stops waits for writers, then takes the pointer away
 * MUTANT_COUNT_OUT_EARLY: a writer counts itself out, then writes
 * MUTANT_NEXT_BEFORE_END: the next trace begins before the end of the last one is over
 */

#define WRITERS 2
#define TRACES 2

byte buffer; /* which trace's; 0: none */
byte num_writers, num_stopped;
bool is_read[TRACES + 2];
byte on; /* the trace that is on, from the end of its start to the beginning of its stop */

proctype writer() {
    byte found, before;
    do
    :: num_stopped == TRACES -> break
    :: num_stopped < TRACES ->
       before = on;
       found = 0;
       if
       :: buffer != 0 -> /* is_on */
#ifdef MUTANT_READ_THEN_COUNT
          found = buffer;
          num_writers++;
#else
          num_writers++; /* W1 */
          found = buffer; /* W2 */
#endif
#ifdef MUTANT_COUNT_OUT_EARLY
          num_writers--;
#endif
          assert(found == 0 || !is_read[found]); /* writes */
#ifndef MUTANT_COUNT_OUT_EARLY
          num_writers-- /* W3 */
#endif
       :: else
       fi;
       assert(before == 0 || before != on || found == before)
    od
}

/* Under the GIL: one trace after the other. */
proctype tracer() {
    byte current;
    for (current : 1 .. TRACES) {
        buffer = current;
        on = current;
        on = 0;
#ifdef MUTANT_WAIT_THEN_TAKE
        num_writers == 0;
        buffer = 0;
#else
#ifdef MUTANT_NEXT_BEFORE_END
        buffer = current + 1;
#else
        buffer = 0; /* X1 */
#endif
#ifndef MUTANT_STOP_AT_ONCE
        num_writers == 0; /* X2 */
#endif
#endif
        is_read[current] = true;
        num_stopped++
    }
}

init {
    byte i;
    atomic { for (i : 1 .. WRITERS) { run writer() } run tracer() }
    timeout;
    assert(num_stopped == TRACES)
}

ltl each_stop_ends { <> (num_stopped == TRACES) }
