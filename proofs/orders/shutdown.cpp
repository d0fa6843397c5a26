/* Section: Shutdown
 * Property: a request sees that its model closes, or the closer sees it counted in
 * COUNT_IN: a request's first operation
 * LOOK_CLOSING: its look whether the model closes
 * CLOSE: the closer's store
 * LOOK_COUNT: the closer's load of the number of requests
 */

#include "check.h"

const rl::memory_order COUNT_IN = order("COUNT_IN", rl::mo_seq_cst, rl::mo_acq_rel);
const rl::memory_order LOOK_CLOSING = order("LOOK_CLOSING", rl::mo_seq_cst, rl::mo_acquire);
const rl::memory_order CLOSE = order("CLOSE", rl::mo_seq_cst, rl::mo_release);
const rl::memory_order LOOK_COUNT = order("LOOK_COUNT", rl::mo_seq_cst, rl::mo_acquire);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> in_flight, closing;
    bool is_refused, is_awaited;

    void before() {
        in_flight.store(0, AS(rl::mo_relaxed));
        closing.store(0, AS(rl::mo_relaxed));
        is_refused = is_awaited = false;
    }
    void thread(unsigned index) {
        if (index == 0) {
            in_flight.fetch_add(1, AS(COUNT_IN));
            is_refused = closing.load(AS(LOOK_CLOSING)) == 1;
        } else {
            closing.store(1, AS(CLOSE));
            is_awaited = in_flight.load(AS(LOOK_COUNT)) == 1;
        }
    }
    void after() { RL_ASSERT(is_refused || is_awaited); }
};

int main() { return explore<Check>(); }
