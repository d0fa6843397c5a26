/* Section: The turnstile
 * Property: every caller has its turn, though holders of a lease may stop and never give it back
 * Left out: priorities, deadlines and dismissals; a section under the lock is one step; there is one
 *     lease, and it may be overdue at any time
 * MUTANT_NO_NEXT_WATCHER: when the watcher has its turn, nobody is appointed in its place
 * MUTANT_WAKE_FIRST: a section wakes a waiter, then changes its word
 */

#define CALLERS 3
#define NOBODY CALLERS

mtype = { AWAY, WAITS, WATCHES, GRANTED };
mtype word[CALLERS] = AWAY;
bool is_asleep[CALLERS];
byte ticket[CALLERS], last_ticket;
byte holder = NOBODY;
byte num_served;

#define IS_IN_LINE(i) (word[i] == WAITS || word[i] == WATCHES)

/* How each section under the lock ends: the oldest has a free lease, and one of the others watches. */
inline settle() {
    first = NOBODY;
    last = NOBODY;
    granted = NOBODY;
    for (i : 0 .. CALLERS - 1) {
        if
        :: IS_IN_LINE(i) && (first == NOBODY || ticket[i] < ticket[first]) -> first = i
        :: else
        fi
    };
    if
    :: holder == NOBODY && first != NOBODY -> holder = first; granted = first
    :: else
    fi;
    watches = false;
    for (i : 0 .. CALLERS - 1) {
        if
        :: i != granted && IS_IN_LINE(i) ->
           watches = watches || word[i] == WATCHES;
           if :: last == NOBODY || ticket[i] > ticket[last] -> last = i :: else fi
        :: else
        fi
    };
    if
#ifdef MUTANT_NO_NEXT_WATCHER
    :: granted == NOBODY && last != NOBODY && !watches ->
#else
    :: last != NOBODY && !watches ->
#endif
       word[last] = WATCHES; is_asleep[last] = false
    :: else
    fi;
    if
    :: granted != NOBODY ->
#ifndef MUTANT_WAKE_FIRST
       word[granted] = GRANTED;
#endif
       is_asleep[granted] = false
    :: else
    fi
}

inline finish_granting() {
#ifdef MUTANT_WAKE_FIRST
    if :: granted != NOBODY -> word[granted] = GRANTED :: else fi
#else
    skip
#endif
}

proctype caller(byte me) {
    byte i, first, last, granted;
    bool watches;
    mtype seen;
    atomic { word[me] = WAITS; ticket[me] = last_ticket; last_ticket++; settle() };
    finish_granting();
    do
    :: seen = word[me];
       if
       :: seen == GRANTED -> break
       :: else ->
          atomic { if :: word[me] == seen -> is_asleep[me] = true :: else fi };
          if
          :: !is_asleep[me]
          :: atomic { is_asleep[me] && seen == WATCHES -> is_asleep[me] = false };
             atomic { if :: IS_IN_LINE(me) -> holder = NOBODY; settle() :: else -> granted = NOBODY fi };
             finish_granting()
          fi
       fi
    od;
    num_served++;
    if
    :: atomic { if :: holder == me -> holder = NOBODY; settle() :: else -> granted = NOBODY fi };
       finish_granting()
    :: true /* stops calling, with its lease */
    fi
}

init {
    byte k;
    atomic { for (k : 0 .. CALLERS - 1) { run caller(k) } }
    timeout;
    assert(num_served == CALLERS)
}
