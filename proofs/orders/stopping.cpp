/* Section: Stopping a run
 * Property: a flag that is set for a run is cleared before the next one begins
 * CLEAR: the owner's store that ends the run (O2)
 * WAIT: the owner's look for stoppers (O3)
 * LOOK: a stopper's look at what runs (S2)
 */

#include "check.h"

const rl::memory_order CLEAR = order("CLEAR", rl::mo_seq_cst, rl::mo_release);
const rl::memory_order WAIT = order("WAIT", rl::mo_seq_cst, rl::mo_acquire);
const rl::memory_order LOOK = order("LOOK", rl::mo_seq_cst, rl::mo_acquire);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> current, num_stoppers;
    rl::var<int> flag;

    void before() {
        current.store(1, AS(rl::mo_relaxed));
        num_stoppers.store(0, AS(rl::mo_relaxed));
        flag($) = 0;
    }
    void thread(unsigned index) {
        if (index == 0) {
            current.store(0, AS(CLEAR)); // O2
            if (num_stoppers.load(AS(WAIT)) == 0) flag($) = 0; // O3; else it looks again
        } else {
            num_stoppers.fetch_add(1, AS(rl::mo_seq_cst)); // S1
            if (current.load(AS(LOOK)) == 1) flag($) = 1; // S2
            num_stoppers.fetch_sub(1, AS(rl::mo_seq_cst));
        }
    }
};

int main() { return explore<Check>(); }
