/* Section: How wide
 * Property: a request that is held for a wider group is served, though the time after which its
 *     worker would look again never comes
 * Left out: the policy: a worker may want to hold whenever a part of the wide group is taken, and
 *     takes any width
 * MUTANT_KEEP_WITHOUT_LOOK: a worker that has kept a wide group leaves it without looking
 * MUTANT_HOLD_WITHOUT_LOOK: the worker that holds does not look whether anybody runs
 * MUTANT_LOOK_THEN_END: a runner looks at the backlog, then ends its run
 */

#define LEAVES 2

byte bits = 3; /* a bit for each free leaf: one word */
byte num_running;
byte num_published, head, places;
bool is_granted[LEAVES];
byte num_served;

#define HAS_ITEMS (head < num_published)
#define REQUESTS 2

inline kick() {
    woken = LEAVES;
    atomic { /* whichever the policy prefers */
        if
        :: bits & 1 -> bits = bits & ~1; woken = 0
        :: bits & 2 -> bits = bits & ~2; woken = 1
        :: bits == 0
        fi
    };
    if :: woken < LEAVES -> is_granted[woken] = true :: else fi
}

proctype pusher() {
    byte woken;
    places++;
    num_published++;
    kick()
}

proctype worker(byte leaf) {
    byte woken, own, group, rest;
    do
    :: is_granted[leaf] -> is_granted[leaf] = false;
serve: own = 1 << leaf;
       do
       :: if
          :: places > 0 && ((bits | own) != 3) -> /* a part is taken by others: wait for both */
             bits = bits | own; /* H1 */
#ifdef MUTANT_HOLD_WITHOUT_LOOK
             goto next;
#else
             if
             :: num_running > 0 -> goto next /* H2 */
             :: else ->
                if
                :: atomic { bits == 3 -> bits = 0; own = 3 } /* all that it waits for */
                :: else -> goto next /* whoever has a part of it looks */
                fi
             fi
#endif
          :: true
          fi;
          if
          :: atomic { HAS_ITEMS -> head++ }
          :: else -> break
          fi;
          places--;
          if :: group = 1 << leaf :: group = 3 fi; /* widen */
          rest = group & ~own;
          if
          :: rest != 0 ->
             if
             :: atomic { (bits & rest) == rest -> bits = bits & ~rest }
             :: else -> group = 1 << leaf
             fi
          :: else
          fi;
          if :: own & ~group -> bits = bits | (own & ~group) :: else fi;
          own = group; /* kept while requests wait */
          if :: HAS_ITEMS -> kick() :: else fi;
          num_running++;
          num_running--; /* R1 */
          num_served++;
          if :: !HAS_ITEMS -> break :: else fi /* R2 */
       od;
       bits = bits | own;
       if
#ifdef MUTANT_KEEP_WITHOUT_LOOK
       :: own == 3
#endif
       :: HAS_ITEMS ->
          if
          :: atomic { bits & (1 << leaf) -> bits = bits & ~(1 << leaf) } -> goto serve
          :: else -> kick()
          fi
       :: else
       fi;
next:  skip
    od
}

proctype inline_caller() {
    byte woken, mask;
    places == 0;
    atomic {
        if
        :: bits == 3 -> bits = 0; mask = 3
        :: bits & 2 -> bits = bits & ~2; mask = 2
        :: else
        fi
    };
    if
    :: mask != 0 ->
       num_running++;
#ifdef MUTANT_LOOK_THEN_END
       if :: places > 0 -> kick() :: else fi;
       num_running--;
       bits = bits | mask
#else
       num_running--; /* R1 */
       bits = bits | mask;
       if :: places > 0 -> kick() :: else fi /* R2 */
#endif
    :: else
    fi
}

init {
    byte i;
    atomic {
        for (i : 1 .. REQUESTS) { run pusher() }
        run worker(0); run worker(1);
        run inline_caller()
    }
    timeout;
    assert(num_served == REQUESTS)
}

ltl nobody_is_held_for_ever { <> (num_served == REQUESTS) }
