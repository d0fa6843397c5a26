/* Section: Stopping a run
 * Property: no run outlasts its deadline because the watcher sleeps too long
 * Left out: the registration of the watcher in the slot (stopping.pml); time is what the watcher
 *     has slept for, and passes at any moment
 * MUTANT_PUBLISH_LATE: a run looks when the watcher wakes, then publishes its deadline
 * MUTANT_KEEP_CLOCK: the watcher does not say "never" before it looks at the slots
 * MUTANT_SLEEP_REGARDLESS: the watcher sleeps although the epoch has moved
 */

#define SLOTS 2
#define NEVER 4

bool runs[SLOTS]; /* a run that only its deadline ends */
byte deadline[SLOTS];
byte wakes = NEVER; /* as after its first look, which found nothing */
byte epoch, now;
bool is_asleep;
byte num_runs = SLOTS, num_ended;

proctype runner(byte slot; byte until) {
#ifdef MUTANT_PUBLISH_LATE
    bool is_early;
    is_early = (until < wakes);
#endif
    deadline[slot] = until;
    runs[slot] = true;
#ifdef MUTANT_PUBLISH_LATE
    if :: is_early -> epoch++; is_asleep = false :: else fi;
#else
    if :: until < wakes -> epoch++; is_asleep = false :: else fi;
#endif
    !runs[slot];
    num_ended++
}

proctype watcher() {
    byte seen, earliest, slot;
    do
    :: seen = epoch;
#ifndef MUTANT_KEEP_CLOCK
       wakes = NEVER;
#endif
       earliest = NEVER;
       for (slot : 0 .. SLOTS - 1) {
           if
           :: runs[slot] ->
              if
              :: deadline[slot] <= now -> runs[slot] = false
              :: deadline[slot] > now && deadline[slot] < earliest -> earliest = deadline[slot]
              :: else
              fi
           :: else
           fi
       };
       wakes = earliest;
#ifdef MUTANT_SLEEP_REGARDLESS
       is_asleep = true;
#else
       atomic { if :: epoch == seen -> is_asleep = true :: else fi };
#endif
       if
       :: !is_asleep /* woken */
       :: atomic { is_asleep && earliest < NEVER -> now = earliest; is_asleep = false }
       fi
    od
}

init {
    atomic {
        run watcher();
        run runner(0, 1); run runner(1, 3)
    };
    if
    :: !runs[0] && num_ended > 0 -> num_runs++; run runner(0, 2) /* a second run in a slot */
    :: true
    fi;
    timeout;
    assert(num_ended == num_runs)
}

ltl all_end { <> (num_ended == num_runs) }
