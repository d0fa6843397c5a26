/* Section: The queue
 * Property: an item and its tag are read as they were pushed, and written over only once they have
 *     been read; the positions, which are relaxed, publish nothing
 * PUBLISH: the pusher's store of the turn
 * HAND_ON: the popper's store of the turn
 * LOOK: the load of the turn
 */

#include "check.h"

const rl::memory_order PUBLISH = order("PUBLISH", rl::mo_seq_cst, rl::mo_relaxed);
const rl::memory_order HAND_ON = order("HAND_ON", rl::mo_seq_cst, rl::mo_relaxed);
const rl::memory_order LOOK = order("LOOK", rl::mo_seq_cst, rl::mo_relaxed);

const unsigned SLOTS = 2;

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> turn[SLOTS], head, tail;
    rl::atomic<unsigned> tag[SLOTS]; /* the item's own number */
    rl::var<unsigned> item[SLOTS];

    void before() {
        for (unsigned i = 0; i < SLOTS; i++) turn[i].store(i, AS(rl::mo_relaxed));
        head.store(0, AS(rl::mo_relaxed));
        tail.store(0, AS(rl::mo_relaxed));
        for (unsigned i = 0; i < SLOTS; i++) try_push(i + 1);
    }
    bool try_push(unsigned value) {
        unsigned position = tail.load(AS(rl::mo_relaxed));
        while (true) {
            const int ahead = turn[position % SLOTS].load(AS(LOOK)) - position;
            if (ahead == 0) {
                if (tail.compare_exchange_strong(position, position + 1, AS(rl::mo_relaxed))) break;
            } else if (ahead < 0) {
                return false;
            } else {
                position = tail.load(AS(rl::mo_relaxed));
            }
        }
        item[position % SLOTS]($) = value;
        tag[position % SLOTS].store(value, AS(rl::mo_relaxed));
        turn[position % SLOTS].store(position + 1, AS(PUBLISH));
        return true;
    }
    unsigned try_pop() {
        unsigned position = head.load(AS(rl::mo_relaxed)), seen;
        while (true) {
            const int ahead = turn[position % SLOTS].load(AS(LOOK)) - (position + 1);
            if (ahead == 0) {
                seen = tag[position % SLOTS].load(AS(rl::mo_relaxed)); /* a look at the head */
                if (head.compare_exchange_strong(position, position + 1, AS(rl::mo_relaxed))) break;
            } else if (ahead < 0) {
                return 0;
            } else {
                position = head.load(AS(rl::mo_relaxed));
            }
        }
        const unsigned value = item[position % SLOTS]($);
        RL_ASSERT(seen == value);
        turn[position % SLOTS].store(position + SLOTS, AS(HAND_ON));
        return value;
    }
    void thread(unsigned index) {
        if (index == 0) {
            try_push(SLOTS + 1); /* on the next lap, if there is room by now */
        } else {
            unsigned last = 0;
            for (unsigned i = 0; i < SLOTS + 1; i++) {
                const unsigned value = try_pop();
                RL_ASSERT(value == 0 || value == last + 1);
                if (value) last = value;
            }
        }
    }
};

int main() { return explore<Check>(); }
