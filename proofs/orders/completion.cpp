/* Section: Completion
 * Property: a caller that sees the request done sees its result
 * COMPLETE: the exchange of the completing side
 * LOOK: the waiter's load
 */

#include "check.h"

const rl::memory_order COMPLETE = order("COMPLETE", rl::mo_acq_rel, rl::mo_acquire);
const rl::memory_order LOOK = order("LOOK", rl::mo_acquire, rl::mo_relaxed);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> state;
    rl::var<int> result;

    void before() { state.store(0, AS(rl::mo_relaxed)); }
    void thread(unsigned index) {
        if (index == 0) {
            result($) = 7;
            state.exchange(2, AS(COMPLETE));
        } else if (state.load(AS(LOOK)) == 2) {
            RL_ASSERT(result($) == 7);
        }
    }
};

int main() { return explore<Check>(); }
