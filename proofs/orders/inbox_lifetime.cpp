/* Section: Inboxes
 * Property: what posters do to the inbox comes before its destructor, although they count themselves
 *     in by a relaxed operation
 * RELEASE: a poster's last operation, that counts it out
 * LAST_LOOK: the destructor's load of the number of posters
 */

#include "check.h"

const rl::memory_order RELEASE = order("RELEASE", rl::mo_release, rl::mo_relaxed);
const rl::memory_order LAST_LOOK = order("LAST_LOOK", rl::mo_acquire, rl::mo_relaxed);

struct Check : rl::test_suite<Check, 2> {
    rl::atomic<unsigned> newest, num_posting;
    rl::var<int> inbox; /* stands for what the destructor frees */

    void before() {
        newest.store(0, AS(rl::mo_relaxed));
        num_posting.store(0, AS(rl::mo_relaxed));
        inbox($) = 1;
    }
    void thread(unsigned index) {
        if (index == 0) {
            unsigned none = 0;
            num_posting.fetch_add(1, AS(rl::mo_relaxed));
            newest.compare_exchange_strong(none, 1, AS(rl::mo_seq_cst));
            RL_ASSERT(inbox($) == 1); /* notifies */
            num_posting.fetch_sub(1, AS(RELEASE));
        } else if (newest.exchange(0, AS(rl::mo_seq_cst))) { /* the node, and with it the inbox, goes */
            if (num_posting.load(AS(LAST_LOOK)) == 0) inbox($) = 0;
        }
    }
};

int main() { return explore<Check>(); }
