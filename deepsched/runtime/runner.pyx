"""A run on a group that its thread owns: of one request, or of several together.

README.md, "A request's life", "Batching" and "Stopping a run".
"""

cimport cython
from deepsched.runtime.batch_plan cimport (
    OUTPUTS_DIFFER, BatchPlan, cost_of, learn_cost, learn_together, note_failure,
)
from deepsched.runtime.batching cimport (
    OUTPUTS_DO_NOT_FIT, SPLIT, Batch, Joined, Split, check_outputs, release_joined, run_joined,
    split_outputs,
)
from deepsched.runtime.elastic cimport Elastic
from deepsched.runtime.estimates cimport learn
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.histogram cimport add_one, record
from deepsched.runtime.known_short cimport learn_class
from deepsched.runtime.library cimport loaded_library
from deepsched.runtime.ort cimport OrtStatus
from deepsched.runtime.request cimport (
    DONE, EXPIRED, FAILED, ModelState, RequestState, Stage, release_outputs, trace_end,
)
from deepsched.runtime.shrink cimport move_out_of_arena, shrink
from deepsched.runtime.statistics cimport GroupStats
from deepsched.runtime.stopping cimport RunSlots
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic, memory_order_acquire, memory_order_relaxed, memory_order_seq_cst,
)


@cython.final
@cython.no_gc_clear  # as Dispatcher
cdef class Runner:
    """Runs, counts and learns. `elastic`: of an elastic context, else None."""

    def __cinit__(self, RunSlots slots not None, Elastic elastic):
        self.slots = slots
        self.elastic = elastic
        self.is_elastic = elastic is not None

    cdef void run_batch(self, Batch* batch, int group, uint64_t kept) noexcept nogil:
        """Runs one request, several together, or these one by one."""
        if batch.num_parts == 1:
            self.run(batch.first, group, kept)
        elif not self.run_together(batch, group, kept):
            self.run_each(batch, group, kept)

    cdef void run(self, RequestState* request, int group, uint64_t kept) noexcept nogil:
        """Runs a request that has begun, on the calling thread, with the session of `group`.

        The caller owns the group. In an elastic context it keeps only those of its leaves that are
        in `kept`.
        """
        cdef ModelState* model = request.model
        cdef BatchPlan* plan = model.plan.load(memory_order_acquire)  # pairs with set_batching
        cdef GroupStats* stats = &model.stats[group]
        cdef uint64_t length
        cdef uint32_t reason = 0
        cdef bint has_run = True
        cdef Stage end = DONE
        cdef double company = 0
        if self.is_elastic:
            company = self.elastic.record_start(group, model.estimates, 1)
        if plan != NULL:
            self.slots.slots[group].running.store(running_word(model, 1), memory_order_relaxed)
        # seq_cst, and before the request's run is published: README, "Stopping a run".
        request.group.store(group, memory_order_seq_cst)
        request.num_together = 1
        if request.is_stoppable:
            has_run = self.slots.begin(group, request, 1, request.deadline_ns)
        request.started_ns = now_ns()
        if not request.submitted_ns:
            request.submitted_ns = request.started_ns
        if has_run:
            self.call_ort(request, group)
        request.ended_ns = now_ns()
        if request.is_stoppable and (self.slots.end(group) or not has_run):
            reason = request.stop_reason.load(memory_order_relaxed)  # ordered by end()
        if plan != NULL:
            self.slots.slots[group].running.store(0, memory_order_relaxed)
            learn_cost(plan, 1, 1)
        if request.shrinks and has_run:
            move_out_of_arena(request.outputs, model.num_outputs)
            shrink(model.sessions[group], model.output_names)
        length = request.alone_ns = request.ended_ns - request.started_ns
        if request.status != NULL or not has_run:
            end = <Stage>reason if reason else FAILED
        # A run that was stopped too late has its outputs, and is done.
        if end == DONE:
            self.learn_length(request, group, company, length)
            self.learn_class_of(request, group, length)
        elif end == EXPIRED and has_run:
            # It would have taken longer.
            self.learn_trial(request, group, company, length + length // 2)
            # Only upwards, and not the first: a timeout may be of any length. relaxed: a statistic.
            if 0 < model.needed_ns.load(memory_order_relaxed) < length + length // 2:
                smooth(&model.needed_ns, length + length // 2)
        add_one(&stats.busy_ns, length)
        count_end(request, stats, end)
        if self.is_elastic:
            self.elastic.record_end(group, kept)

    cdef bint run_together(self, Batch* batch, int group, uint64_t kept) noexcept nogil:
        """Runs a batch whose members have begun, as `run` does one of them.

        False: it has failed, for all that is known because of one of them. None has ended: `run_each`
        is to follow.
        """
        cdef RequestState* member = batch.first
        cdef ModelState* model = batch.first.model
        cdef BatchPlan* plan = model.plan.load(memory_order_acquire)  # pairs with set_batching
        cdef GroupStats* stats = &model.stats[group]
        cdef uint64_t started_ns, ended_ns, length, alone_ns
        cdef OrtStatus* status = NULL
        cdef Joined joined
        cdef Split split = SPLIT
        cdef Stage end
        cdef bint is_wanted, has_run, is_joined, was_stopped, has_ended
        cdef double company = 0, cost = cost_of(plan, batch.num_items, batch.num_units)
        if self.is_elastic:
            company = self.elastic.record_start(group, model.estimates, cost)
        self.slots.slots[group].running.store(
            running_word(model, batch.num_units), memory_order_relaxed
        )
        started_ns = now_ns()
        while member != NULL:
            # seq_cst, and before the members' run is published: README, "Stopping a run".
            member.group.store(group, memory_order_seq_cst)
            member.num_together = batch.num_parts
            member.started_ns = started_ns
            if not member.submitted_ns:
                member.submitted_ns = started_ns
            member = member.next_mate
        is_wanted = self.slots.begin(group, batch.first, batch.num_requests, batch.deadline_ns)
        has_run = is_wanted and not batch.is_mixed
        is_joined = batch.num_requests == 1  # of several parts
        if has_run and is_joined:
            self.call_ort(batch.first, group)
            status = batch.first.status
            batch.first.status = NULL
        elif has_run:
            status = run_joined(&joined, batch, plan, group, self.slots.slots[group].options)
        ended_ns = now_ns()
        was_stopped = self.slots.end(group) or not is_wanted
        self.slots.slots[group].running.store(0, memory_order_relaxed)
        length = ended_ns - started_ns
        alone_ns = <uint64_t>(length / cost)
        member = batch.first
        while member != NULL:
            # relaxed: ordered by end(). Who is asked for from here on was asked for too late.
            member.is_dropped = member.stop_reason.load(memory_order_relaxed) != 0
            member.ended_ns = ended_ns
            member.alone_ns = alone_ns
            member = member.next_mate
        if has_run and status == NULL:
            split = check_outputs(batch.first) if is_joined else split_outputs(&joined, batch)
        if has_run and not is_joined:
            release_joined(&joined, batch)
        if split == OUTPUTS_DO_NOT_FIT:
            plan.why_off.store(OUTPUTS_DIFFER, memory_order_relaxed)
        add_one(&stats.busy_ns, length)
        has_ended = was_stopped or (has_run and status == NULL and split == SPLIT)
        if has_ended:
            if has_run and status == NULL:
                self.learn_length(batch.first, group, company, alone_ns)
                if not self.is_elastic or group < self.elastic.tree.num_leaves:
                    learn_together(plan, batch.num_units, length)
                learn_cost(plan, cost, batch.num_parts)
            elif has_run:  # it would have taken longer
                self.learn_trial(batch.first, group, company, alone_ns + alone_ns // 2)
            add_one(&stats.num_batches[batch.num_parts], 1)
            member = batch.first
            while member != NULL:
                end = DONE
                if member.is_dropped:
                    end = <Stage>member.stop_reason.load(memory_order_relaxed)
                elif has_run and status == NULL:
                    self.learn_class_of(member, group, length if is_joined else alone_ns)
                count_end(member, stats, end)
                member = member.next_mate
        if status != NULL:
            loaded_library().api.ReleaseStatus(status)
        if self.is_elastic:
            self.elastic.record_end(group, kept)
        return has_ended

    cdef void run_each(self, Batch* batch, int group, uint64_t kept) noexcept nogil:
        """Runs the members of a batch that has failed one after another: each has its own end."""
        cdef RequestState* member = batch.first
        cdef BatchPlan* plan = batch.first.model.plan.load(memory_order_acquire)
        cdef bint all_done = True, has_parts = False
        while member != NULL:
            release_outputs(member)  # what a failed split left
            if member.num_parts > 1:
                has_parts = True
                # Its caller starts the parts anew; these count then, and it tells whether they fail.
                # relaxed: this thread's own.
                member.stage.store(FAILED, memory_order_relaxed)
            else:
                self.run(member, group, kept)
            all_done = all_done and member.stage.load(memory_order_relaxed) == DONE
            member = member.next_mate
        if not batch.is_mixed and not has_parts:
            note_failure(plan, all_done)

    cdef void call_ort(self, RequestState* request, int group) noexcept nogil:
        """The run itself, with the session of `group`."""
        cdef ModelState* model = request.model
        request.status = loaded_library().api.Run(
            model.sessions[group],
            self.slots.slots[group].options,  # always: without any, ORT makes some for each run
            request.input_names, request.inputs, request.num_inputs,
            model.output_names, model.num_outputs, request.outputs,
        )

    cdef void learn_length(
        self, RequestState* request, int group, double company, uint64_t alone_ns
    ) noexcept nogil:
        """A run that began in this company has ended, and takes so long for one request."""
        record_run_length(request.model, alone_ns)
        if self.is_elastic:
            # What was beside it at the start and at the end stands for what was between.
            learn(
                &self.elastic.tree, &self.elastic.demand, request.model.estimates, group,
                (company + self.elastic.company(group)) / 2, alone_ns, request.is_trial,
                request.ended_ns,
            )

    cdef void learn_class_of(self, RequestState* request, int group, uint64_t length) noexcept nogil:
        """A run with its inputs has ended, and takes so long."""
        if request.inputs_key:
            learn_class(
                request.model.short_classes, request.inputs_key, length, self.width_of(group)
            )

    cdef int width_of(self, int group) noexcept nogil:
        """How many streams it is."""
        if not self.is_elastic:
            return 1
        return self.elastic.tree.high[group] - self.elastic.tree.low[group]

    cdef void learn_trial(
        self, RequestState* request, int group, double company, uint64_t alone_ns
    ) noexcept nogil:
        """A trial was stopped: a width that ends nothing in time must not look new."""
        if request.is_trial:
            learn(
                &self.elastic.tree, &self.elastic.demand, request.model.estimates, group, company,
                alone_ns, True, request.ended_ns,
            )

    cdef uint32_t num_running(self, ModelState* model, uint32_t* num_units) noexcept nogil:
        """How many runs of the model are under way, and with how many units. A hint."""
        cdef uint32_t num_runs = 0
        cdef uint64_t word
        cdef int group
        num_units[0] = 0
        for group in range(self.slots.num_slots):
            word = self.slots.slots[group].running.load(memory_order_relaxed)
            if word and word >> 16 == model.number:
                num_runs += 1
                num_units[0] += <uint32_t>(word & 0xFFFF)
        return num_runs


cdef inline uint64_t running_word(ModelState* model, uint32_t num_units) noexcept nogil:
    return (<uint64_t>model.number << 16) | num_units


cdef void count_end(RequestState* request, GroupStats* stats, Stage end) noexcept nogil:
    """The end of a request that ran on the group of `stats`, whose owner the caller is."""
    cdef uint32_t i
    if end == DONE:
        add_one(&stats.num_done, request.num_parts)
    elif end == FAILED:
        add_one(&stats.num_failed, request.num_parts)
    elif end == EXPIRED:
        add_one(&stats.num_expired, request.num_parts)
    else:
        add_one(&stats.num_cancelled, request.num_parts)
    if not request.by_worker:
        add_one(&stats.num_inline, request.num_parts)
    for i in range(request.num_parts):
        record(&stats.waiting, request.started_ns - request.submitted_ns)
        record(&stats.running, request.ended_ns - request.started_ns)
    # relaxed: published by the completion, or seen by the same thread.
    request.stage.store(end, memory_order_relaxed)
    trace_end(request, end)


cdef void record_run_length(ModelState* model, uint64_t length) noexcept nogil:
    smooth(&model.typical_ns, length)
    # relaxed: a statistic. Far too high: it may have been a cold first run, or other inputs.
    if 2 * length < model.needed_ns.load(memory_order_relaxed):
        model.needed_ns.store(2 * length, memory_order_relaxed)
    smooth(&model.needed_ns, length)


cdef void smooth(atomic[uint64_t]* estimate, uint64_t length) noexcept nogil:
    # relaxed: a statistic; an update lost to another thread does no harm.
    cdef uint64_t known = estimate.load(memory_order_relaxed)
    if not known:
        known = length
    # A run that was preempted says nothing of the model, so none counts for more than twice the
    # estimate: 1 ms among 5 us would move it to 130 us.
    estimate.store(known - known // 8 + min(length, 2 * known) // 8 + 1, memory_order_relaxed)


cdef bint is_short(ModelState* model) noexcept nogil:
    # relaxed: a statistic; 0 until the first run.
    return 0 < model.typical_ns.load(memory_order_relaxed) < SHORT_RUN_NS
