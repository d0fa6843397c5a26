/* Section: Waiting for space
 * Property: no pusher sleeps while there is room, and one whose model closes comes back, however
 *     full the queue stays
 * Left out: timeouts; the ring but for its one quirk: a popper that has won a slot and not handed it
 *     on, while another has, makes a pusher with a place find no slot
 * MUTANT_LOOK_THEN_REGISTER: a pusher tries again, then registers
 * MUTANT_READ_EPOCH_LATE: a pusher reads the epoch after its second try
 * MUTANT_KEEP_EPOCH: a popper wakes without advancing the epoch
 * MUTANT_GIVE_BACK_SILENTLY: a pusher that found no slot gives its place back without a look
 * MUTANT_CLOSE_SILENTLY: the closer does not advance the epoch and wakes nobody
 */

#define CAPACITY 2
#define PUSHERS 2
#define CLOSING_ONE 1

byte places = CAPACITY; /* full at first */
byte slots[CAPACITY] = 1; /* 0: empty, 1: an item, 2: won by a popper */
byte head, tail; /* of positions, modulo CAPACITY */
byte waiters;
bool has_moved[PUSHERS]; /* the epoch, since this pusher has read it */
bool is_asleep[PUSHERS];
bool is_closing, is_back;

inline advance_epoch() {
    atomic { has_moved[0] = true; has_moved[1] = true }
}

inline wake_one() {
    atomic {
        if
        :: is_asleep[0] -> is_asleep[0] = false
        :: is_asleep[1] -> is_asleep[1] = false
        :: else
        fi
    }
}

inline give_place_back(num_own) {
    places--;
    if
    :: waiters > num_own ->
#ifndef MUTANT_KEEP_EPOCH
       advance_epoch();
#endif
       wake_one()
    :: else
    fi
}

inline try_push(num_own) {
    atomic {
        is_pushed = (places < CAPACITY);
        if :: is_pushed -> places++ :: else fi
    };
    if
    :: is_pushed ->
       atomic {
           is_pushed = (slots[tail] == 0);
           if :: is_pushed -> slots[tail] = 1; tail = (tail + 1) % CAPACITY :: else fi
       };
       if
       :: !is_pushed ->
#ifdef MUTANT_GIVE_BACK_SILENTLY
          places--
#else
          give_place_back(num_own)
#endif
       :: else
       fi
    :: else
    fi
}

proctype pusher(byte me) {
    bool is_pushed;
    do
    :: try_push(0);
       if :: is_pushed -> break :: else fi;
#ifndef MUTANT_READ_EPOCH_LATE
       has_moved[me] = false; /* reads the epoch */
#endif
#ifdef MUTANT_LOOK_THEN_REGISTER
       try_push(0);
       if :: is_pushed -> break :: else fi;
       waiters++;
#else
       waiters++;
       try_push(1);
       if :: is_pushed -> waiters--; break :: else fi;
#endif
#ifdef MUTANT_READ_EPOCH_LATE
       has_moved[me] = false;
#endif
       if
       :: me == CLOSING_ONE && is_closing
       :: else ->
          atomic { if :: !has_moved[me] -> is_asleep[me] = true :: else fi };
          !is_asleep[me]
       fi;
       waiters--;
       if :: me == CLOSING_ONE && is_closing -> break :: else fi
    od;
    if :: me == CLOSING_ONE -> is_back = true :: else fi
}

proctype popper() {
    byte slot;
    do
    :: atomic { slots[head] == 1 -> slot = head; slots[slot] = 2; head = (head + 1) % CAPACITY };
       slots[slot] = 0;
       give_place_back(0)
    :: break /* all streams are in long runs */
    od
}

proctype closer() {
    if
    :: is_closing = true;
#ifndef MUTANT_CLOSE_SILENTLY
       advance_epoch();
       atomic { is_asleep[0] = false; is_asleep[1] = false }
#endif
    :: true /* nobody closes */
    fi
}

init {
    byte i;
    atomic {
        for (i : 0 .. PUSHERS - 1) { run pusher(i) }
        run popper(); run popper();
        run closer()
    }
    timeout;
    assert(!is_closing || is_back);
    assert(places == CAPACITY || !(is_asleep[0] || is_asleep[1]))
}
