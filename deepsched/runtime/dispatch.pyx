"""Requests meet core groups: claim or queue, run, complete.

README.md, "A request's life" and "No lost wake-up", is the argument; this is the code.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from deepsched.runtime.batch_plan cimport BatchPlan
from deepsched.runtime.batching cimport Batch, begin_batch, tag_of
from deepsched.runtime.completion cimport WAIT_DONE, WaitResult, is_complete, wait_for
from deepsched.runtime.estimates cimport MAY_HOLD, MAY_NOT_TRY, MAY_TRY, Decision, Trying
from deepsched.runtime.futex cimport now_ns
from deepsched.runtime.gathering cimport finish_batch
from deepsched.runtime.inbox cimport DeferredNotification, flush, is_overdue
from deepsched.runtime.policy cimport PolicyTree
from deepsched.runtime.pins cimport Pins
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.posix cimport (
    MAX_CPUS, SIGNAL_CHECK_NS, CpuMask, is_main_thread, sched_getcpu,
)
from deepsched.runtime.queue cimport Tag
from deepsched.runtime.request cimport (
    CANCELLED, CLOSING, EXPIRED, NO_DEADLINE, RUNNING, Stage, begin, is_late, leave, withdraw,
)
from deepsched.runtime.runner cimport is_short
from deepsched.runtime.session cimport ThreadTeam
from deepsched.runtime.stopping cimport ask_to_stop
from deepsched.runtime.turnstile cimport Turnstile
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_seq_cst

from deepsched.errors import StreamConfigError

# Queued work above which the worker whose core a producer uses is woken beside it, ns.
cdef uint64_t SHARE_CORE_NS = 1_000_000

# When to look again at what another worker was woken for.
cdef int64_t BRIEFLY_HELD_NS = 1_000_000



@cython.final
@cython.no_gc_clear  # the workers use the members, and theirs, until __dealloc__ has stopped them
cdef class Dispatcher:
    """The backlog, the core groups and the workers of one context.

    Args:
        cpus_by_group: the CPUs of each group (OS numbers), or None for groups without CPUs of
            their own. The thread that calls Run is pinned to the first, ORT's to the others.
        queue_capacity: how many requests may wait.
        spin_ns: how long a worker whose queue ran dry spins before it parks; -1: as long as a
            wake-up takes, where that matters for the model's runs.
        thread_prefix: the workers' names are "<thread_prefix>-s0" and so on.
        tree: for an elastic context, whose leaves are the groups: they may be taken together.
    """

    def __cinit__(
        self, list cpus_by_group, *, size_t queue_capacity, int64_t spin_ns, str thread_prefix,
        PolicyTree tree=None,
    ):
        cdef int group, num_streams = len(cpus_by_group)
        self.generation = fork_generation()
        self.backlog = Backlog(queue_capacity)
        self.groups = CoreGroups(num_streams)
        self.num_groups = num_streams
        if tree is not None:
            self.elastic = Elastic(tree, self.groups, cpus_by_group[0] is not None)
            self.is_elastic = True
            self.num_groups = tree.tree.num_groups
        self.pool = WorkerPool(num_streams)
        self.turnstile = Turnstile(num_streams)
        self.tracer = Tracer()
        self.slots = RunSlots(self.num_groups, thread_prefix)
        self.runner = Runner(self.slots, self.elastic)
        self.load = ExpectedLoad(self.elastic)
        self.gatherer = Gatherer(
            self.backlog, self.groups, self.pool, self.runner, self.turnstile, self.load
        )
        self.abandoned = []
        self.orphans = []
        self.is_pinned = cpus_by_group[0] is not None
        self.spin_ns = spin_ns
        self.producer_group.store(-1, memory_order_relaxed)  # relaxed: not shared yet
        self.group_of_cpu = <int*>calloc(MAX_CPUS, sizeof(int))
        if self.group_of_cpu == NULL:
            raise MemoryError(f"no memory for {self.num_groups} core groups")
        for cpu in range(MAX_CPUS):
            self.group_of_cpu[cpu] = -1
        if self.is_pinned:
            for group in range(num_streams):
                for cpu in cpus_by_group[group]:
                    if cpu >= MAX_CPUS:
                        raise StreamConfigError(f"CPU {cpu} is beyond the {MAX_CPUS} of Linux")
                    self.group_of_cpu[cpu] = group
        firsts = []
        for group in range(self.num_groups):
            leaf = group if tree is None else tree.tree.low[group]
            firsts.append(cpus_by_group[leaf][0] if self.is_pinned else None)
        self.pins = Pins(firsts)
        self.pool.start(_serve, _retry, <void*>self, self.pins.masks, thread_prefix)

    def __dealloc__(self):
        if self.generation == fork_generation() and self.pool is not None:
            self.pool.stop()
            free(self.group_of_cpu)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that made the dispatcher."""
        return self.generation != fork_generation()

    @property
    def num_streams(self) -> int:
        """Number of streams, as which a context's requests run in parallel."""
        return self.groups.num_groups

    @property
    def num_busy(self) -> int:
        """Number of groups that are claimed right now."""
        return self.groups.num_claimed()

    @property
    def wake_up_ns(self) -> int:
        """Smoothed latency of waking a worker, in ns."""
        return self.pool.state.wake_ns.load(memory_order_relaxed)

    def close(self) -> None:
        """Ends the threads. Every model must have been closed."""
        if self.generation == fork_generation():
            self.pool.stop()
            self.slots.close()
            self.reap()

    # --- Without the GIL --------------------------------------------------------------------

    cdef bint try_inline(self, RequestState* request) noexcept nogil:
        """Runs `request` here if nobody waits and a group is free."""
        cdef int cpu, preferred, leaf, group
        cdef Decision decision
        cdef Batch batch
        cdef CpuMask own
        cdef bint moved
        # FIFO: nobody overtakes a request that waits. One that is late is for a worker to end.
        if self.backlog.places.load(memory_order_relaxed) or is_late(request):
            return False
        cpu = self.cpu()
        preferred = self.group_of_cpu[cpu] if cpu >= 0 else -1
        if self.is_elastic:
            # A longer run is worth a migration that keeps wide groups whole.
            decision = self.elastic.claim(
                request.model.estimates, preferred if is_short(request.model) else -1,
                may_try(request),
            )
            group = decision.group
            if group < 0:
                return False  # holding it for a group that is busy is a worker's job
            leaf = self.elastic.tree.low[group]
            request.is_trial = decision.is_trial
        else:
            leaf = group = self.groups.claim(preferred)
            if leaf < 0:
                return False
        # relaxed: no other thread knows this request.
        request.stage.store(RUNNING, memory_order_relaxed)
        request.by_worker = False
        moved = self.move_to(&own, request, group, cpu == self.pins.first_cpu[group])
        begin_batch(&batch, request)
        self.runner.run_batch(&batch, group, self.mask_of(leaf))
        self.move_back(&own, moved, request, group, leaf)
        if not self.look_around(leaf, self.mask_of(leaf), request.ended_ns):
            self.leave_group(leaf, WAKE_ANY)
        return True

    cdef Submitted submit(
        self, RequestState* request, bint may_inline, int64_t patience_ns
    ) noexcept nogil:
        """Claim a group and run here, or queue. `patience_ns` bounds one wait for space.

        The caller has counted the request in, and counts it out only if it is not accepted.
        """
        cdef int error
        cdef uint32_t epoch
        cdef BatchPlan* plan
        cdef Tag tag
        # Read now: once the request is queued, it may be freed.
        cdef WakePolicy policy = (
            SPARE_CALLER if request.is_producer and is_short(request.model) else WAKE_ANY
        )
        if self.is_elastic:
            plan = request.model.plan.load(memory_order_acquire)  # pairs with set_batching
            self.elastic.record_arrival(
                request.model.estimates,
                self.backlog.places.load(memory_order_relaxed),  # relaxed: guesses
                1 if plan == NULL else (
                    request.num_parts * plan.request_cost.load(memory_order_relaxed)
                ),
            )
        if may_inline and self.try_inline(request):
            leave(request.model)
            return SERVED
        if not request.submitted_ns:
            request.submitted_ns = now_ns()
        request.by_worker = True
        request.is_stoppable = True
        self.load.add(request)
        tag = tag_of(request)
        request.batch_key = tag.key
        while not self.backlog.try_push(request, request.priority, tag, 0):
            # README, "Waiting for space". seq_cst: register, then look again.
            epoch = self.backlog.space.load(memory_order_seq_cst)
            self.backlog.space_waiters.fetch_add(1, memory_order_seq_cst)
            if self.backlog.try_push(request, request.priority, tag, 1):
                self.backlog.space_waiters.fetch_sub(1, memory_order_relaxed)
                break
            error = 0
            if request.model.admission.load(memory_order_seq_cst) != CLOSING:
                error = -1 if patience_ns == 0 else self.backlog.wait_for_space(epoch, patience_ns)
            # relaxed: deregistering late only costs a wake-up too many.
            self.backlog.space_waiters.fetch_sub(1, memory_order_relaxed)
            if request.model.admission.load(memory_order_seq_cst) == CLOSING:
                self.load.subtract(request)
                return CLOSED
            if error:
                self.load.subtract(request)
                return FULL
        # From here on the request may end, and its caller free it, at any time.
        self.kick(policy)
        return ACCEPTED

    cdef bint move_to(
        self, CpuMask* own, RequestState* request, int group, bint is_there
    ) noexcept nogil:
        """Pins the calling thread to the group's first core for a run. False: not needed.

        ORT's threads are pinned to the others. Pinned to the whole group instead, the caller shared
        a core with one of them for seconds: half the speed on two cores.
        """
        return not (is_there and is_short(request.model)) and self.pins.move(own, group)

    cdef void move_back(
        self, CpuMask* own, bint moved, RequestState* request, int group, int leaf
    ) noexcept nogil:
        """After the run: puts the calling thread's affinity back."""
        if moved:
            self.pins.put_back(own)
        self.check_pins(request, group, leaf)

    cdef void check_pins(self, RequestState* request, int group, int leaf) noexcept nogil:
        """After a run on `group`: sees now and then whether its threads are where they were pinned.

        The caller owns `leaf`, so its worker is not on its way to another group or back. (The
        other streams of a wider group may have new owners; their own workers they look at
        themselves.) README, "CPUs that go".
        """
        cdef ThreadTeam* team
        cdef int i
        if not self.pins.is_due(leaf, request.ended_ns):
            return
        self.pins.check(self.pool.workers[leaf].thread, self.pins.first_cpu[leaf], request.ended_ns)
        team = request.model.teams[group]
        for i in range(team.num_started):
            self.pins.check(team.threads[i].thread, team.cpus[i + 1], request.ended_ns)

    cdef int cpu(self) noexcept nogil:
        """The CPU that we run on; -1 without pinning."""
        if not self.is_pinned:
            return -1
        cdef int cpu = sched_getcpu()
        return cpu if cpu < MAX_CPUS else -1

    cdef int here(self) noexcept nogil:
        """The group of the core we run on, or -1: going to another one costs a migration."""
        cdef int cpu = self.cpu()
        return self.group_of_cpu[cpu] if cpu >= 0 else -1

    cdef void kick(self, WakePolicy policy) noexcept nogil:
        """Wakes a worker for what waits, if a group is free. README, "Who is woken"."""
        cdef int group, producer_group = -1
        # relaxed: hints, and the queued work is an estimate anyway.
        if policy == SPARE_CALLER:
            producer_group = self.here()
            self.producer_group.store(producer_group, memory_order_relaxed)
        elif policy == SPARE_PRODUCER:
            producer_group = self.producer_group.load(memory_order_relaxed)
        if producer_group >= 0 and (
            self.load.ns.load(memory_order_relaxed) >= SHARE_CORE_NS
            or not self.groups.num_claimed()
        ):
            producer_group = -1  # too much waits, or nobody would look at the backlog again
        if self.is_elastic and producer_group < 0:
            group = self.elastic.claim_leaf(self.backlog.places.load(memory_order_relaxed))
        else:
            group = self.groups.claim_other_than(producer_group)
        if group >= 0:
            self.pool.wake(group)

    cdef void leave_group(self, int group, WakePolicy policy) noexcept nogil:
        """Releases a group that a caller owned, and wakes a worker if requests wait."""
        self.groups.release(group)
        # Release, then look: README, "No lost wake-up". A place is taken before the push that the
        # rule is about.
        if self.backlog.places.load(memory_order_seq_cst):
            self.kick(policy)

    cdef bint look_around(self, int leaf, uint64_t own, uint64_t now) noexcept nogil:
        """If that is due, nobody waits and the neighbour of `leaf` idles, has their workers see how far
        apart they are. True: these own both leaves from here on. README, "Ping-pong".

        `own`: of the two, what the caller owns.
        """
        cdef int other
        if (
            not self.is_elastic or not self.elastic.distances.is_due(now)
            or self.backlog.places.load(memory_order_relaxed)  # a hint
            or not self.elastic.distances.begin(leaf)
        ):
            return False
        other = self.elastic.distances.neighbours[leaf]
        if not self.groups.claim_all((self.mask_of(leaf) | self.mask_of(other)) & ~own):
            self.elastic.distances.give_up(now)
            return False
        self.elastic.distances.appoint(leaf)
        self.pool.wake(other)
        self.pool.wake(leaf)
        return True

    cdef int help(self, int most) noexcept nogil:
        """Serves at most `most` requests on the calling thread; returns how many.

        For a caller of short runs that would wait otherwise: README, "Who is woken".
        """
        cdef RequestState* request = NULL
        cdef int num_served = 0
        cdef DeferredNotification owed
        cdef Batch batch
        cdef CpuMask own
        cdef bint moved
        cdef int cpu = self.cpu()
        cdef int group = self.groups.claim(self.group_of_cpu[cpu] if cpu >= 0 else -1)
        cdef bint is_there, hears_signals = is_main_thread()
        if group < 0:
            return 0
        owed.inbox = NULL
        is_there = cpu == self.pins.first_cpu[group]
        # Never another model's long run: the caller only has time for short ones. Nor, in the main
        # thread, one that may be long: README, "A request's life". relaxed: the counts may be late,
        # and then one such run is served here.
        while (
            num_served < most
            and not self.load.num_long.load(memory_order_relaxed)
            and not (hears_signals and self.load.num_unknown.load(memory_order_relaxed))
            and self.gatherer.pop(&request)
        ):
            begin_batch(&batch, request)
            if begin(request, self.gatherer.others_wait(request)):
                num_served += self.gatherer.gather(&batch, 1, &owed)
                flush(&owed)  # of those that it has ended
                moved = self.move_to(&own, request, group, is_there)
                self.runner.run_batch(&batch, group, self.mask_of(group))
                self.move_back(&own, moved, request, group, group)
            num_served += batch.num_parts
            finish_batch(&batch, &owed)
            flush(&owed)
        self.leave_group(group, SPARE_CALLER)
        return num_served

    cdef int64_t serve(self, int group) noexcept nogil:
        """A worker's turn: owns the stream `group` on entry, has given it up on return.

        Returns how long the worker should spin for its next turn before it parks, in ns; it spins
        without the group, so that a caller may run inline meanwhile. Negative: the next request
        waits for a wider group, and the worker should look again after that long.
        """
        cdef RequestState* request = NULL
        cdef uint64_t typical_ns = 0
        cdef DeferredNotification owed
        cdef Batch batch
        cdef bint is_short_run, is_drained, has_begun
        cdef int mine, wide
        cdef int64_t held_ns
        # Elastic: the leaves that we have. Those of a wide run are kept while requests wait: were
        # they released in between, a pusher would wake their workers, and the next run be narrow.
        cdef uint64_t own = 0
        owed.inbox = NULL
        if self.is_elastic:
            self.elastic.distances.play(group)
        while True:
            own = self.mask_of(group)
            is_drained = False
            while not is_drained:
                if self.is_elastic and self.groups.any_reserved(own):
                    # Left to who measures; that one looks at the backlog after it.
                    flush(&owed)
                    self.release_stream(group, own)
                    # It may have given up since, and looked before we released.
                    if self.backlog.has_items():
                        self.kick(WAKE_ANY)
                    return 0
                held_ns = self.hold(group, &own) if self.is_elastic else 0
                if held_ns:
                    flush(&owed)
                    return -held_ns
                if not self.gatherer.pop(&request):
                    break
                is_short_run = is_short(request.model)
                if not is_short_run:
                    flush(&owed)
                if request.batch_key:
                    self.gatherer.let_callers_queue(request, &owed)
                wide = self.widen(request, group, own)
                own = self.mask_of(wide)
                has_begun = begin(request, self.gatherer.others_wait(request))
                begin_batch(&batch, request)
                if has_begun:
                    self.gatherer.gather(&batch, self.runner.width_of(wide), &owed)
                if self.backlog.has_items():
                    # A pusher wakes one worker, but may find no group free while we own one that we
                    # then leave: so whoever pops a request and sees more wakes the next.
                    self.kick(SPARE_PRODUCER if is_short_run else WAKE_ANY)
                typical_ns = request.model.typical_ns.load(memory_order_relaxed)
                if has_begun:
                    # "Short" is what the model's runs usually are; this one may be long.
                    self.slots.lend(group, &owed)
                    self.run_on_worker(&batch, wide, group)
                    self.slots.take_back(group, &owed)
                is_drained = not self.backlog.has_items()
                if is_drained:
                    # Before its caller is notified: one that returns at once finds the group free.
                    self.release_stream(group, own)
                finish_batch(&batch, &owed)
                if (
                    is_drained or not is_short_run or is_overdue(&owed)
                    # relaxed: see start_watcher. Without it, nobody would notify during a run.
                    or not self.slots.is_watched.load(memory_order_relaxed)
                ):
                    flush(&owed)
            flush(&owed)  # if others emptied the backlog first
            if not is_drained:
                self.release_stream(group, own)
            # Release, then look again: README, "No lost wake-up".
            if not self.backlog.has_items():
                if self.is_elastic:
                    self.look_around(group, 0, now_ns())
                return self.spin_time(typical_ns)
            mine = self.groups.claim(group)
            if mine != group:
                if mine >= 0:
                    self.pool.wake(mine)
                # Else every group has an owner, and each looks at the queue when it leaves.
                return self.spin_time(typical_ns)

    cdef uint64_t mask_of(self, int group) noexcept nogil:
        """The leaves of a group of an elastic context."""
        return self.elastic.tree.mask[group] if self.is_elastic else 0

    cdef void release_stream(self, int leaf, uint64_t own) noexcept nogil:
        """A worker gives up its stream `leaf`; in an elastic context all that it has, `own`."""
        if self.is_elastic:
            self.groups.release_all(own)
        else:
            self.groups.release(leaf)

    cdef int widen(self, RequestState* request, int leaf, uint64_t own) noexcept nogil:
        """Claims the group that a popped request runs on, around `leaf`; see Elastic.widen."""
        if not self.is_elastic:
            return leaf
        # Those that wait, and the one that has been popped. relaxed: a hint.
        cdef Decision decision = self.elastic.widen(
            leaf, own, request.model.estimates, self.backlog.places.load(memory_order_relaxed) + 1,
            may_try(request),
        )
        request.is_trial = decision.is_trial
        return decision.group

    cdef void run_on_worker(self, Batch* batch, int group, int leaf) noexcept nogil:
        """Runs on the worker of `leaf`, which moves to the first core of `group` and back: one of
        ORT's threads is pinned to the worker's own core meanwhile."""
        cdef bint moves = (
            self.is_pinned and group != leaf
            and self.pins.first_cpu[group] != self.pins.first_cpu[leaf]
        )
        if moves:
            self.pins.move_worker(group)
        self.runner.run_batch(batch, group, self.mask_of(group))
        if moves:
            self.pins.move_worker(leaf)
        self.check_pins(batch.first, group, leaf)

    cdef int64_t hold(self, int leaf, uint64_t* own) noexcept nogil:
        """How long the next request should wait for another group around `leaf`, in ns; 0: no wait.

        If so, `own`, the leaves that the caller has, have been given up; if not, it may have more.
        README, "How wide".
        """
        cdef size_t num_waiting = self.backlog.places.load(memory_order_relaxed)  # a guess
        cdef uint64_t held_ns, wanted
        cdef int group
        # Of several models, the first in the line may be another than the one that is known here.
        if not num_waiting or self.elastic.is_mixed(num_waiting):
            return 0
        group = self.elastic.decide(
            &self.elastic.latest, leaf, own[0], num_waiting, MAY_HOLD
        ).group
        held_ns = self.elastic.busy_ns(group, own[0])
        wanted = self.elastic.tree.mask[group]
        if not held_ns and wanted & own[0]:
            return 0
        self.groups.release_all(own[0])
        if not held_ns:  # a free group elsewhere: let a worker there serve it
            self.kick(WAKE_ANY)
            return BRIEFLY_HELD_NS
        # It may be only this group that is kept clear, for a trial.
        group = self.elastic.decide(&self.elastic.latest, -1, 0, num_waiting, MAY_NOT_TRY).group
        if not self.elastic.busy_ns(group, 0):
            self.kick(WAKE_ANY)
        # Release, then look whether somebody runs who will look at the backlog after that. seq_cst.
        if self.elastic.num_running.load(memory_order_seq_cst) > 0:
            return held_ns
        # Others that have a part of the group have just come, as we have: for as many requests
        # their workers were woken. Of those that want all of it, the last one gets it.
        if wanted & own[0]:
            own[0] = wanted
        # If another thread has a part of it by now, it will look at the backlog.
        return 0 if self.groups.claim_all(own[0]) else held_ns

    cdef void retry(self) noexcept nogil:
        """Wakes a worker for a request that was held for as long as expected."""
        if self.backlog.has_items():
            self.kick(WAKE_ANY)

    cdef int64_t spin_time(self, uint64_t typical_ns) noexcept nogil:
        """How long to spin for the next request, in ns: README, "Spinning"."""
        cdef uint64_t wake_ns = self.pool.wake_ns()
        if self.spin_ns >= 0:
            return self.spin_ns
        # Where the wake-up that it might save is less than 1 % of a run: not at all.
        return 0 if typical_ns > 100 * wake_ns else <int64_t>wake_ns

    cdef void stop_running(self, RequestState* request, Stage reason) noexcept nogil:
        """Asks a request that has begun, or is about to, to stop. The caller keeps it alive."""
        cdef int group
        if not ask_to_stop(request, reason):
            return
        # seq_cst: README, "Stopping a run". -1: it will see the reason before it runs.
        group = request.group.load(memory_order_seq_cst)
        if group >= 0:
            self.slots.stop(group)

    # --- With the GIL -------------------------------------------------------------------------

    cdef wait(self, Request request):
        """Waits for a queued request. A signal handler's exception withdraws it and propagates.

        Raises:
            DeadlineExceeded: it was withdrawn, or is being stopped.
        """
        cdef WaitResult result
        cdef bint in_main_thread = is_main_thread()
        cdef uint64_t now, deadline_ns = request.state.deadline_ns
        cdef int64_t patience_ns
        while True:
            patience_ns = SIGNAL_CHECK_NS if in_main_thread else -1
            if deadline_ns != NO_DEADLINE:
                now = now_ns()
                if now >= deadline_ns:
                    if is_complete(&request.state.completion):
                        return
                    expiry = request.expiry()  # before it is stopped
                    self.abandon(request, EXPIRED)
                    raise expiry
                if patience_ns < 0 or <int64_t>(deadline_ns - now) < patience_ns:
                    patience_ns = <int64_t>(deadline_ns - now)
            with nogil:
                result = wait_for(&request.state.completion, patience_ns)
            if result == WAIT_DONE:
                return
            try:
                PyErr_CheckSignals()
            except BaseException:
                self.abandon(request, CANCELLED)
                raise

    cdef abandon(self, Request request, Stage end):
        """Ends the wait for `request`, which a worker or the queue may still point to."""
        if not withdraw(&request.state, end):
            self.stop_running(&request.state, end)
        # An own reference, that the garbage collector cannot see through: reap() gives it back.
        Py_INCREF(request)
        self.abandoned.append(request)

    cdef reap(self):
        """Frees abandoned requests that have ended, and what arrived in orphaned inboxes."""
        cdef Request request
        cdef list left = []
        # One at a time: another thread may be here, or a finalizer come here between any two lines.
        while self.abandoned:
            try:
                request = self.abandoned.pop()
            except IndexError:
                break
            if is_complete(&request.state.completion):
                Py_DECREF(request)
            else:
                left.append(request)
        self.abandoned.extend(left)
        left = []
        while self.orphans:
            try:
                inbox, num_left = self.orphans.pop()
            except IndexError:
                break
            num_left -= len(inbox.take())
            if num_left:
                left.append((inbox, num_left))
        self.orphans.extend(left)


cdef Trying may_try(RequestState* request) noexcept nogil:
    """Whether the request can afford a width that may be slower: its deadline is not near."""
    # relaxed: a statistic.
    if request.deadline_ns == NO_DEADLINE or (
        now_ns() + 8 * request.model.typical_ns.load(memory_order_relaxed) < request.deadline_ns
    ):
        return MAY_TRY
    return MAY_NOT_TRY


cdef void _retry(void* dispatcher) noexcept nogil:
    (<Dispatcher>dispatcher).retry()


cdef int64_t _serve(void* dispatcher, int group) noexcept nogil:
    return (<Dispatcher>dispatcher).serve(group)
