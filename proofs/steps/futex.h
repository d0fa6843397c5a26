/* The kernel's futex. A thread's sleep is a flag of its own: it falls asleep only if the word is as
   expected, in one atomic step, and whoever wakes it clears the flag. */

inline futex_wait(asleep, word, expected) {
    atomic { if :: word == expected -> asleep = true :: else fi };
    !asleep
}

inline futex_wake(asleep) {
    asleep = false
}
