/* Section: A request's life
 * Property: a request ends once, as whoever moved it on from QUEUED says, and nobody touches it after
 *     it has been freed
 * Left out: stops of a run (stopping.pml); the queue, which has the request from the start
 * MUTANT_WITHDRAW_BY_LOOK: who withdraws looks at the stage, then stores it
 * MUTANT_BEGIN_BY_LOOK: the worker looks at the stage, then stores it
 * MUTANT_FREE_WITHDRAWN: a caller that leaves frees the request that the queue points to
 * MUTANT_TOUCH_AFTER_END: the worker touches the request after it has completed it
 */

mtype = { QUEUED, RUNNING, DONE, CANCELLED, EXPIRED };
mtype stage = QUEUED;
bool is_complete, is_freed;
byte num_ends; /* counted by whoever decides */

#define TOUCH assert(!is_freed)

inline move_on(to) {
    atomic { won = (stage == QUEUED); if :: won -> stage = to :: else fi }
}

inline move_on_by_look(to) {
    won = (stage == QUEUED);
    if :: won -> stage = to :: else fi
}

#ifdef MUTANT_WITHDRAW_BY_LOOK
#define WITHDRAW move_on_by_look
#else
#define WITHDRAW move_on
#endif
#ifdef MUTANT_BEGIN_BY_LOOK
#define BEGIN move_on_by_look
#else
#define BEGIN move_on
#endif

proctype worker() {
    bool won;
    TOUCH; /* pop */
    BEGIN(RUNNING);
    if
    :: won ->
       TOUCH; /* the run */
       stage = DONE;
       num_ends++
    :: else
    fi;
    TOUCH;
    is_complete = true;
#ifdef MUTANT_TOUCH_AFTER_END
    TOUCH
#endif
}

/* A cancel from elsewhere, which holds a reference of its own. */
proctype canceller() {
    bool won;
    WITHDRAW(CANCELLED);
    if :: won -> num_ends++ :: else fi
}

proctype caller() {
    bool won;
    if
    :: is_complete
    :: true -> /* leaves early: withdraws it, or asks for its stop */
       WITHDRAW(EXPIRED);
       if :: won -> num_ends++ :: else fi;
#ifndef MUTANT_FREE_WITHDRAWN
       is_complete /* abandoned: freed by reap, which looks again later */
#endif
    fi;
    is_freed = true
}

init {
    atomic { run worker(); run canceller(); run caller() }
    timeout;
    assert(num_ends == 1 && is_freed)
}
