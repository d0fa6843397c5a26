from deepsched.runtime.policy cimport MAX_LEVELS, Lengths, Load, Plan, PolicyTree, Tree
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef enum:  # company
    ALONE = 0
    CROWD = 1

cdef enum Trying:
    MAY_NOT_TRY
    MAY_TRY  # the request may be used to learn about another width
    MAY_HOLD  # it may wait for a wider group, and be used then

cdef struct Estimates:
    # What is believed of one model's runs, by company and level.
    atomic[uint32_t] number  # the model's
    atomic[double] run_ns[2][MAX_LEVELS]  # 0: unknown
    atomic[uint64_t] learned_ns[2][MAX_LEVELS]  # when a run last told; 0: none did
    atomic[uint64_t] tried_ns[MAX_LEVELS]  # when a trial of it began
    atomic[int64_t] credit_ns  # what trials may still cost
    atomic[int32_t] num_settling  # runs whose length the last trial may still have to do with
    atomic[uint32_t] stays_narrow  # each request takes one stream, whatever is believed
    atomic[uint32_t] num_changes  # of the machine, that were seen before this was believed

cdef struct Demand:
    # What arrives at a context, and the trial that goes on there.
    uint64_t born_ns
    atomic[uint64_t] rolled_ns  # when `offered` was brought up to date
    atomic[uint64_t] arrived_ns  # length of the runs that arrived since
    atomic[double] offered
    atomic[uint32_t] num_arrived
    atomic[uint32_t] most  # requests in the system, of the last few arrivals,
    atomic[uint32_t] most_before  # and of as many before
    atomic[int32_t] trial_left  # how many more requests take `trial_level`,
    atomic[int32_t] trial_level
    atomic[int32_t] trial_group  # within this group
    atomic[uint32_t] trial_number  # of the model that it is of
    atomic[uint64_t] trial_until_ns

cdef struct Decision:
    int group
    bint is_trial

cdef void believe(Estimates* estimates, int level, double run_ns, uint64_t now) noexcept nogil
cdef void doubt(const Tree* tree, Estimates* estimates) noexcept nogil
cdef void read_lengths(const Tree* tree, Estimates* estimates, Lengths* lengths) noexcept nogil
cdef void record_demand(
    Demand* demand, uint32_t num_in_system, uint64_t run_ns, uint64_t now
) noexcept nogil
cdef Load read_load(Demand* demand) noexcept nogil
cdef Decision decide(
    const Tree* tree, Demand* demand, Estimates* estimates, const uint64_t* busy_ns, int leaf,
    double num_waiting, Trying trying, uint64_t now,
) noexcept nogil
cdef void learn(
    const Tree* tree, Demand* demand, Estimates* estimates, int group, double company,
    uint64_t length_ns, bint is_trial, uint64_t now,
) noexcept nogil
