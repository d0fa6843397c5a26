/* Section: No lost wake-up
 * Property: a pusher sees the group free, or its last owner sees the item, whole
 * PUBLISH: the store of the slot's turn
 * LOOK_FREE: the pusher's load of the free bits
 * RELEASE: the operation that frees the group
 * LOOK_QUEUE: the owner's load of the turn
 */

#include "check.h"

const rl::memory_order PUBLISH = order("PUBLISH", rl::mo_seq_cst, rl::mo_release);
const rl::memory_order LOOK_FREE = order("LOOK_FREE", rl::mo_seq_cst, rl::mo_acquire);
const rl::memory_order RELEASE = order("RELEASE", rl::mo_seq_cst, rl::mo_acq_rel);
const rl::memory_order LOOK_QUEUE = order("LOOK_QUEUE", rl::mo_seq_cst, rl::mo_acquire);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> turn, bits;
    rl::var<int> item;
    bool pusher_sees, owner_sees;

    void before() {
        turn.store(0, AS(rl::mo_relaxed));
        bits.store(0, AS(rl::mo_relaxed));
        pusher_sees = owner_sees = false;
    }
    void thread(unsigned index) {
        if (index == 0) {
            item($) = 7;
            turn.store(1, AS(PUBLISH)); // S1
            pusher_sees = bits.load(AS(LOOK_FREE)) != 0; // S2
        } else {
            bits.fetch_or(1, AS(RELEASE)); // S3
            owner_sees = turn.load(AS(LOOK_QUEUE)) == 1; // S4
            if (owner_sees) RL_ASSERT(item($) == 7);
        }
    }
    void after() { RL_ASSERT(pusher_sees || owner_sees); }
};

int main() { return explore<Check>(); }
