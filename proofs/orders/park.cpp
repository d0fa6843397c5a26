/* Section: Park and wake
 * Property: a worker that is granted its group sees all that the group's last owner has done
 * GRANT: the exchange that grants the group
 * LOOK: the worker's load of its word, and its exchange
 */

#include "check.h"

const rl::memory_order GRANT = order("GRANT", rl::mo_acq_rel, rl::mo_relaxed);
const rl::memory_order LOOK = order("LOOK", rl::mo_acquire, rl::mo_relaxed);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> word;
    rl::var<int> group;

    void before() { word.store(0, AS(rl::mo_relaxed)); }
    void thread(unsigned index) {
        if (index == 0) {
            unsigned parked = 0;
            group($) = 7;
            word.compare_exchange_strong(parked, 1, AS(GRANT));
        } else {
            unsigned granted = word.load(AS(LOOK));
            if (granted == 1) {
                word.compare_exchange_strong(granted, 2, AS(LOOK));
                RL_ASSERT(group($) == 7);
                group($) = 8;
            }
        }
    }
};

int main() { return explore<Check>(); }
