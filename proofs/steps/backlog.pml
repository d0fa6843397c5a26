/* Section: The backlog
 * Property: a request of any priority is popped, however many urgent ones come
 * Left out: a turn comes after 4 pops, not 16; classes but the urgent one hold one item
 * MUTANT_NO_BACKGROUND_TURN: no pop prefers the background class
 * MUTANT_NO_NORMAL_TURN: no pop prefers the normal class
 */

#define POPPERS 2

bool has_urgent = true, has_normal = true, has_background = true;
byte pops;

proctype feeder() {
    do
    :: atomic { !has_urgent -> has_urgent = true }
    od
}

proctype popper() {
    byte turn;
    bool popped;
    do
    :: has_urgent || has_background ->
       popped = false;
       atomic { turn = pops; pops = (pops + 1) % 4 };
       if
#ifndef MUTANT_NO_BACKGROUND_TURN
       :: turn == 3 -> atomic { popped = has_background; has_background = false }
#endif
#ifndef MUTANT_NO_NORMAL_TURN
       :: turn == 1 -> atomic { popped = has_normal; has_normal = false }
#endif
       :: else
       fi;
       if :: !popped -> atomic { popped = has_urgent; has_urgent = false } :: else fi;
       if :: !popped -> atomic { popped = has_normal; has_normal = false } :: else fi;
       if :: !popped -> atomic { popped = has_background; has_background = false } :: else fi
    od
}

init {
    byte i;
    atomic { run feeder(); for (i : 1 .. POPPERS) { run popper() } }
}

ltl none_starves { <> (!has_normal && !has_background) }
