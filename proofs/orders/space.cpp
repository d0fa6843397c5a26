/* Section: Waiting for space
 * Property: a pusher that has registered sees the place, or the popper sees the waiter
 * REGISTER: the pusher's registration
 * TRY: its load of the places
 * GIVE_BACK: the popper's operation on the places
 * LOOK_WAITERS: its look for waiters
 */

#include "check.h"

const rl::memory_order REGISTER = order("REGISTER", rl::mo_seq_cst, rl::mo_acq_rel);
const rl::memory_order TRY = order("TRY", rl::mo_seq_cst, rl::mo_acquire);
const rl::memory_order GIVE_BACK = order("GIVE_BACK", rl::mo_seq_cst, rl::mo_acq_rel);
const rl::memory_order LOOK_WAITERS = order("LOOK_WAITERS", rl::mo_seq_cst, rl::mo_acquire);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> places, waiters;
    bool pusher_sees, popper_sees;

    void before() {
        places.store(1, AS(rl::mo_relaxed)); /* full */
        waiters.store(0, AS(rl::mo_relaxed));
        pusher_sees = popper_sees = false;
    }
    void thread(unsigned index) {
        if (index == 0) {
            waiters.fetch_add(1, AS(REGISTER));
            pusher_sees = places.load(AS(TRY)) == 0;
        } else {
            places.fetch_sub(1, AS(GIVE_BACK));
            popper_sees = waiters.load(AS(LOOK_WAITERS)) == 1;
        }
    }
    void after() { RL_ASSERT(pusher_sees || popper_sees); }
};

int main() { return explore<Check>(); }
