/* Section: Batching
 * Property: a request ends once, with its own answer, whoever it runs together with; only what fits
 *     runs together; and nobody touches a request after its caller may free it
 * Left out: fair shares, deadlines and priorities: a batch may be closed at any time; shapes that
 *     share a hash; stops (stopping.pml); who is woken (wake_up.pml)
 * MUTANT_POP_ANOTHER: who has seen that the head fits pops whatever is at the head by then
 * MUTANT_RUN_WITHDRAWN: a mate that was withdrawn joins the run
 * MUTANT_LEAVE_WITHDRAWN: a mate that was withdrawn is left to whoever withdrew it
 * MUTANT_FAIL_TOGETHER: the run's failure is that of each member
 * MUTANT_FINISH_THEN_NEXT: who ends a batch lets a member go, then reads which is the next
 */

#define SLOTS 2
#define REQUESTS 3 /* each has the position of its number */
#define NONE REQUESTS

#define KEY(request) (request == 2)
#define FAILS(request) (request == 0)

mtype = { QUEUED, RUNNING, DONE, FAILED, CANCELLED };
mtype stage[REQUESTS] = QUEUED;
byte num_ends[REQUESTS]; /* counted by whoever decides */
byte next_mate[REQUESTS] = NONE;
bool is_freed[REQUESTS]; /* by its caller, as soon as it may */

byte turn[SLOTS], item[SLOTS], key[SLOTS], head;
byte num_workers = 2;

#define TOUCH(request) assert(!is_freed[request])

proctype pusher() {
    byte position;
    for (position : 0 .. REQUESTS - 1) {
        turn[position % SLOTS] == position;
        item[position % SLOTS] = position;
        key[position % SLOTS] = KEY(position);
        turn[position % SLOTS] = position + 1
    }
}

proctype withdrawer() {
    byte request;
    select(request : 0 .. REQUESTS - 1);
    atomic {
        if
        :: stage[request] == QUEUED -> stage[request] = CANCELLED; num_ends[request]++
        :: else
        fi
    }
}

inline find_head() {
    do
    :: position = head;
       seen = turn[position % SLOTS];
       if
       :: seen == position + 1 -> is_there = true; break
       :: seen < position + 1 -> is_there = false; break
       :: else
       fi
    od
}

inline try_pop_at(request) {
    atomic { won = (head == position); if :: won -> head++ :: else fi };
    if
    :: won -> request = item[position % SLOTS]; turn[position % SLOTS] = position + SLOTS
    :: else
    fi
}

inline begin(request) {
    TOUCH(request);
    atomic { won = (stage[request] == QUEUED); if :: won -> stage[request] = RUNNING :: else fi }
}

inline finish(request) {
    atomic { TOUCH(request); is_freed[request] = true }
}

inline add_mate() {
    next_mate[last] = mate;
    last = mate
}

inline gather() {
    do
    :: break
    :: find_head();
       if
       :: is_there -> seen = key[position % SLOTS]
       :: else -> break
       fi;
       if
       :: seen == KEY(first)
       :: else -> break
       fi;
#ifdef MUTANT_POP_ANOTHER
       find_head();
       if :: is_there :: else -> break fi;
#endif
       try_pop_at(mate);
       if
       :: won ->
          assert(KEY(mate) == KEY(first));
          begin(mate);
          if
          :: won -> add_mate()
          :: else ->
#ifdef MUTANT_RUN_WITHDRAWN
             add_mate()
#else
#ifndef MUTANT_LEAVE_WITHDRAWN
             finish(mate)
#endif
#endif
          fi
       :: else
       fi
    od
}

inline run_batch() {
    has_failed = false;
    member = first;
    do
    :: member < NONE ->
       TOUCH(member);
       has_failed = has_failed || FAILS(member);
       member = next_mate[member]
    :: else -> break
    od;
    member = first;
    do
    :: member < NONE ->
       TOUCH(member);
#ifdef MUTANT_FAIL_TOGETHER
       stage[member] = (has_failed -> FAILED : DONE);
#else
       stage[member] = (has_failed && FAILS(member) -> FAILED : DONE); /* each by itself */
#endif
       num_ends[member]++;
       member = next_mate[member]
    :: else -> break
    od
}

inline finish_batch() {
    member = first;
    do
    :: member < NONE ->
#ifdef MUTANT_FINISH_THEN_NEXT
       finish(member);
       TOUCH(member);
       following = next_mate[member];
#else
       following = next_mate[member];
       finish(member);
#endif
       member = following
    :: else -> break
    od
}

proctype worker() {
    byte position, seen, first, last, mate, member, following;
    bool is_there, won, has_failed;
    do
    :: head < REQUESTS ->
       find_head();
       if :: is_there -> try_pop_at(first) :: else -> won = false fi;
       if
       :: won ->
          last = first;
          begin(first);
          if :: won -> gather(); run_batch() :: else fi;
          finish_batch()
       :: else
       fi
    :: else -> break
    od;
    num_workers--
}

init {
    byte i;
    atomic {
        for (i : 0 .. SLOTS - 1) { turn[i] = i }
        run pusher(); run withdrawer(); run worker(); run worker()
    }
    num_workers == 0;
    for (i : 0 .. REQUESTS - 1) {
        assert(is_freed[i] && num_ends[i] == 1);
        assert(stage[i] == CANCELLED || stage[i] == (FAILS(i) -> FAILED : DONE))
    }
}
