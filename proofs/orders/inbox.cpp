/* Section: Inboxes
 * Property: the taker that is about to sleep sees the node, or the poster sees that it waits; what
 *     the poster wrote to the node is seen
 * POST: the exchange that publishes the node
 * LOOK_LIST: the taker's load of the list
 */

#include "check.h"

const rl::memory_order POST = order("POST", rl::mo_seq_cst, rl::mo_release);
const rl::memory_order LOOK_LIST = order("LOOK_LIST", rl::mo_seq_cst, rl::mo_acquire);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> newest, is_waited_for;
    rl::var<int> node;
    bool poster_sees, taker_sees;

    void before() {
        newest.store(0, AS(rl::mo_relaxed));
        is_waited_for.store(0, AS(rl::mo_relaxed));
        poster_sees = taker_sees = false;
    }
    void thread(unsigned index) {
        if (index == 0) {
            unsigned none = 0;
            node($) = 7;
            newest.compare_exchange_strong(none, 1, AS(POST)); // P1
            poster_sees = is_waited_for.exchange(0, AS(rl::mo_seq_cst)) == 1; // P2
        } else {
            is_waited_for.store(1, AS(rl::mo_seq_cst)); // T1
            taker_sees = newest.load(AS(LOOK_LIST)) == 1; // T2
            if (newest.exchange(0, AS(rl::mo_seq_cst))) RL_ASSERT(node($) == 7);
        }
    }
    void after() { RL_ASSERT(poster_sees || taker_sees); }
};

int main() { return explore<Check>(); }
