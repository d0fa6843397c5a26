/* Section: Inboxes
 * Property: what a worker owes is notified once, also during a run that never ends, and the inbox
 *     is not used once its last hold is gone
 * Left out: when the watcher wakes (watcher.pml): it looks at any time
 * MUTANT_TAKE_BACK_BY_LOOK: the worker looks whether it is still owed, then clears the slot
 * MUTANT_WATCHER_BY_LOOK: the watcher reads what is owed, then clears the slot
 * MUTANT_KEEP: the worker does not lend during a run
 */

bool is_owed; /* owed_inbox of the slot */
byte num_holds = 1; /* num_posting, taken by the post */
byte num_notified;
bool runs_for_ever, has_ended;

inline notify_and_release() {
    atomic {
        assert(num_holds > 0);
        num_notified++;
        assert(num_notified == 1)
    };
    num_holds--
}

proctype worker() {
    bool has_it = true;
#ifndef MUTANT_KEEP
    is_owed = true; /* lend */
#endif
    if
    :: runs_for_ever = true; num_notified > 0
    :: true
    fi;
#ifndef MUTANT_KEEP
#ifdef MUTANT_TAKE_BACK_BY_LOOK
    has_it = is_owed;
    is_owed = false;
#else
    atomic { has_it = is_owed; is_owed = false }; /* take_back */
#endif
#endif
    if :: has_it -> notify_and_release() :: else fi;
    has_ended = true
}

proctype watcher() {
    bool found;
    do
    :: is_owed ->
#ifdef MUTANT_WATCHER_BY_LOOK
       found = is_owed;
       is_owed = false;
#else
       atomic { found = is_owed; is_owed = false };
#endif
       if :: found -> notify_and_release() :: else fi
    :: has_ended -> break
    od
}

init {
    atomic { run worker(); run watcher() }
    timeout;
    assert(num_notified == 1 && num_holds == 0)
}
