/* Section: Tracing
 * Property: what a writer has written is read whole, and nobody writes after that
 * TAKE_AWAY: the exchange that stops the trace (X1)
 * WAIT: the look for writers (X2)
 * READ: a writer's load of the pointer (W2)
 * COUNT_OUT: its last operation (W3)
 */

#include "check.h"

const rl::memory_order TAKE_AWAY = order("TAKE_AWAY", rl::mo_seq_cst, rl::mo_acq_rel);
const rl::memory_order WAIT = order("WAIT", rl::mo_seq_cst, rl::mo_relaxed);
const rl::memory_order READ = order("READ", rl::mo_seq_cst, rl::mo_acquire);
const rl::memory_order COUNT_OUT = order("COUNT_OUT", rl::mo_release, rl::mo_relaxed);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> buffer, num_writers;
    rl::var<int> entry;

    void before() {
        buffer.store(1, AS(rl::mo_relaxed));
        num_writers.store(0, AS(rl::mo_relaxed));
        entry($) = 0;
    }
    void thread(unsigned index) {
        if (index == 0) {
            buffer.exchange(0, AS(TAKE_AWAY)); // X1
            if (num_writers.load(AS(WAIT)) == 0) (void)(int)entry($); // X2; else it looks again
        } else {
            num_writers.fetch_add(1, AS(rl::mo_seq_cst)); // W1
            if (buffer.load(AS(READ)) == 1) entry($) = 7; // W2
            num_writers.fetch_sub(1, AS(COUNT_OUT)); // W3
        }
    }
};

int main() { return explore<Check>(); }
