/* Relacy runs the threads of a check in every order, with every value that C++'s memory model lets a
   load see, and reports data races. `order` gives the order of the code, and the
   weaker one in the mutant that the environment names. */

#pragma once

#include <relacy/relacy.hpp>

#include <cstdlib>
#include <cstring>

#define AS(order) order, $

inline rl::memory_order order(const char* name, rl::memory_order ours, rl::memory_order weaker) {
    const char* mutant = std::getenv("MUTANT");
    return mutant && std::strcmp(mutant, name) == 0 ? weaker : ours;
}

template <typename Check>
int explore() {
    rl::test_params params;
    params.search_type = rl::sched_full;
    return rl::simulate<Check>(params) ? 0 : 1;
}
