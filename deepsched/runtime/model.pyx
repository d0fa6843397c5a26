"""A model's sessions, and the ways in: run, start, cancel."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from deepsched.runtime.batch_plan cimport (
    BatchPlan, failure_of, follow, free_plan, most_together, new_plan, note_failure, release_allocators,
)
from deepsched.runtime.batching cimport MAX_VALUES
from deepsched.runtime.dispatch cimport (
    ACCEPTED, CLOSED, FULL, SERVED, WAKE_ANY, Dispatcher, Submitted,
)
from deepsched.runtime.estimates cimport ALONE, Estimates, believe
from deepsched.runtime.futex cimport WAKE_ALL, futex_wait, now_ns
from deepsched.runtime.inbox cimport Inbox
from deepsched.runtime.known_short cimport (
    NUM_CLASSES, InputClass, is_known_short, key_of,
)
from deepsched.runtime.measuring cimport measure, warm
from deepsched.runtime.ort cimport OrtSession
from deepsched.runtime.pool cimport fork_generation
from deepsched.runtime.posix cimport SIGNAL_CHECK_NS, is_main_thread
from deepsched.runtime.request cimport (
    CANCELLED, CLOSING, EXPIRED, MOVED, NO_DEADLINE, OPEN, REFUSED, Request, Stage, enter,
    leave, new_request, withdraw,
)
from deepsched.runtime.runner cimport is_short
from deepsched.runtime.session cimport Session, ThreadTeam
from deepsched.runtime.shrink cimport shrink
from deepsched.runtime.statistics cimport GroupStats, snapshot_group, snapshot_unrun
from deepsched.runtime.turnstile cimport Turnstile
from deepsched.runtime.values cimport ValueInfo
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp.atomic cimport (
    atomic, memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst,
)

from deepsched.errors import (
    ClosedError, DeadlineExceeded, ForkError, InputError, OptionError, QueueFull,
)
from deepsched.checks import check_integer, check_timeout
from deepsched.runtime.shrink import prepare_shrinking

@cython.final
cdef class Model:
    """One model's sessions, one for each core group of `dispatcher`.

    Args:
        number: what traces call it; None for a new one.
        batch_size: the first dimension that every input of a request must have, if the sessions
            leave it open; None for whatever they take.
    """

    def __cinit__(self, Dispatcher dispatcher, list sessions, number=None, batch_size=None):
        cdef Session session
        cdef ValueInfo info
        cdef int group
        prepare_shrinking()
        self.dispatcher = dispatcher
        self.sessions = sessions
        session = sessions[0]
        self.inputs = session.describe_inputs()
        self.overridable = session.describe_overridable()
        self.outputs = session.describe_outputs()
        if batch_size is not None:
            for info in self.inputs + self.outputs:
                info.fix_first(batch_size)
        self.all_inputs = self.inputs + self.overridable
        self.input_names = [info.name.encode() for info in self.all_inputs]
        self.output_names = [info.name.encode() for info in self.outputs]
        self.state.num_outputs = len(self.outputs)
        self.state.trace = &dispatcher.tracer.state
        if number is None:
            # relaxed: only to be unique.
            number = _num_models.fetch_add(1, memory_order_relaxed)
        self.state.number = self.number = number
        self.state.sessions = <OrtSession**>calloc(len(sessions), sizeof(OrtSession*))
        self.state.teams = <ThreadTeam**>calloc(len(sessions), sizeof(ThreadTeam*))
        self.state.stats = <GroupStats*>calloc(len(sessions), sizeof(GroupStats))
        self.state.input_names = <const char**>calloc(len(self.all_inputs) + 1, sizeof(char*))
        self.state.output_names = <const char**>calloc(len(self.outputs) + 1, sizeof(char*))
        self.state.estimates = <Estimates*>calloc(1, sizeof(Estimates))
        self.state.short_classes = <InputClass*>calloc(NUM_CLASSES, sizeof(InputClass))
        self.state.instant_classes = <InputClass*>calloc(NUM_CLASSES, sizeof(InputClass))
        if (
            self.state.short_classes == NULL or self.state.instant_classes == NULL or self.state.estimates == NULL
            or self.state.sessions == NULL or self.state.teams == NULL or self.state.stats == NULL
            or self.state.input_names == NULL or self.state.output_names == NULL
        ):
            raise MemoryError("no memory for a model")
        self.state.estimates.number.store(self.number, memory_order_relaxed)
        for group, session in enumerate(sessions):
            self.state.sessions[group] = session.handle
            self.state.teams[group] = &session.team
        for i, name in enumerate(self.input_names):
            self.state.input_names[i] = <bytes>name
        for i, name in enumerate(self.output_names):
            self.state.output_names[i] = <bytes>name

    def __dealloc__(self):
        free(self.state.sessions)
        free(self.state.teams)
        free(self.state.stats)
        free(self.state.estimates)
        free(self.state.short_classes)
        free(self.state.instant_classes)
        free(self.state.input_names)
        free(self.state.output_names)
        free_plan(self.state.plan.load(memory_order_relaxed))

    # --- Ways in ------------------------------------------------------------------------------

    def run(
        self, list inputs, timeout=None, priority=0, bint check_inputs=True, bint shrinks=False,
    ) -> list:
        """Runs one request and returns its outputs; blocks. `inputs` in the graph's order, then any
        of `overridable`; None leaves one of these out."""
        cdef Request request = self.prepare(inputs, timeout, priority, check_inputs, shrinks)
        cdef Turnstile turnstile = self.dispatcher.turnstile
        cdef bint needs_turn, has_ended
        request.state.inputs_key = key_of(request.borrowed)
        if enter(&self.state):
            needs_turn = turnstile.come(&request.state)
            try:
                has_ended = self.submit_and_wait(request, needs_turn)
            finally:
                turnstile.go(&request.state)
            if has_ended:
                return request.outputs()
        return self.successor().run(inputs, time_left(request), priority, check_inputs, shrinks)

    cdef bint submit_and_wait(self, Request request, bint needs_turn) except -1:
        """Submits `request`, which has been counted in, and waits for its end.

        `needs_turn`: it has to pass the turnstile first. False: it has been counted out, since the
        model moved or closed while it waited for room.
        """
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Submitted submitted = FULL
        # Python's signal handlers run in the main thread only, and not while it is inside ORT: there
        # a run that may be long is left to a worker, and Ctrl-C reaches the main thread in its wait.
        cdef bint may_inline = (
            is_known_short(self.state.short_classes, request.state.inputs_key)
            or not is_main_thread()
        )
        while True:
            with nogil:
                if not needs_turn or dispatcher.turnstile.wait_turn(
                    &request.state, is_main_thread()
                ):
                    submitted = dispatcher.submit(
                        &request.state, may_inline, _patience(request.state.deadline_ns)
                    )
            if submitted != FULL:
                break
            needs_turn = False
            if not self.check_interrupts(request):
                return False
        if submitted == CLOSED:
            leave(&self.state)
            request.state.stage.store(REFUSED, memory_order_relaxed)
            return True
        if submitted == ACCEPTED:
            dispatcher.wait(request)
        return True

    cdef bint check_interrupts(self, Request request) except -1:
        """Checks signals and the deadline while a counted-in request waits for room. False: the
        model has moved or is closing.

        Not counted in meanwhile, nor if this is False or raises: a signal's handler may close the
        model, which waits for all that is counted in.
        """
        leave(&self.state)
        PyErr_CheckSignals()
        if request.state.deadline_ns != NO_DEADLINE and request.state.deadline_ns <= now_ns():
            # relaxed: a statistic.
            self.find_current().state.unrun.num_expired.fetch_add(1, memory_order_relaxed)
            raise DeadlineExceeded("the request's timeout expired before the queue had room for it")
        return enter(&self.state)

    def start(
        self, list inputs, Inbox inbox not None, tag=None, timeout=None, priority=0,
        bint check_inputs=True, bint block=True, bint is_producer=False, bint shrinks=False,
        bint may_inline=False,
    ) -> Request | None:
        """Queues a request, which will arrive in `inbox` with its `tag` when it has ended.

        None: there is no room, and `block` is False. `is_producer`: the caller goes on queuing and
        taking, will `help` or `wake_workers` before it waits, and does not want to share its core.
        `may_inline`: a run that takes microseconds may be done here and now: see
        `Request.ran_inline`.
        """
        cdef Request request = self.prepare(inputs, timeout, priority, check_inputs, shrinks)
        started = self.start_prepared(request, inbox, tag, block, is_producer, may_inline)
        if started is not NotImplemented:
            return started
        return self.successor().start(
            inputs, inbox, tag, time_left(request), priority, check_inputs, block, is_producer,
            shrinks,
        )

    cdef object start_prepared(
        self, Request request, Inbox inbox, object tag, bint block, bint is_producer,
        bint may_inline=False,
    ):
        """As `start` does. NotImplemented: the model has moved or is closing, and the request is to
        be prepared and started by `successor`."""
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Submitted submitted = FULL
        cdef bint is_in
        request.tag = tag
        request.state.is_producer = is_producer
        request.inbox = inbox
        request.state.inbox = <void*>inbox
        request.state.node.owner = <void*>request
        dispatcher.slots.try_start_watcher()
        if not enter(&self.state):
            return NotImplemented
        Py_INCREF(request)  # the node's; Inbox.take gives it back
        if request.parts_inputs is None or not may_inline:  # else whoever joined them has looked
            if is_producer or may_inline:  # a producer may `help`
                request.state.inputs_key = key_of(request.borrowed)
            request.is_loops = may_inline
            may_inline = may_inline and is_known_short(
                self.state.instant_classes, request.state.inputs_key
            )
        if may_inline:
            with nogil:
                submitted = dispatcher.submit(&request.state, True, 0)
            if submitted == SERVED:
                Py_DECREF(request)
                return request
        else:  # with the GIL: it never waits
            submitted = dispatcher.submit(&request.state, False, 0)
        while submitted == FULL and block:
            try:
                is_in = self.check_interrupts(request)
            except BaseException:
                Py_DECREF(request)
                raise
            if not is_in:
                Py_DECREF(request)
                return NotImplemented
            with nogil:
                submitted = dispatcher.submit(
                    &request.state, False, _patience(request.state.deadline_ns)
                )
        if submitted == ACCEPTED:
            return request
        leave(&self.state)
        Py_DECREF(request)
        if submitted == CLOSED:
            raise _closed()
        return None

    def reject(self) -> None:
        """Counts a request that found no room, and raises QueueFull."""
        # relaxed: a statistic.
        self.find_current().state.unrun.num_rejected.fetch_add(1, memory_order_relaxed)
        raise QueueFull(
            f"{self.dispatcher.backlog.capacity} requests wait already, which is the context's "
            "queue_capacity; try again later, or let the call wait"
        )

    def cancel(self, Request request not None, bint as_expired=False) -> None:
        """Ends a request of `start` early: it never runs, or is stopped at the next operator.

        It arrives in its inbox all the same. Nothing happens if it has ended.
        """
        cdef Stage end = EXPIRED if as_expired else CANCELLED
        # Where it is: its model may have moved since, or before it was accepted.
        cdef Dispatcher dispatcher = (<Model>request.owner).dispatcher
        if dispatcher.generation == fork_generation():
            if not withdraw(&request.state, end):
                dispatcher.stop_running(&request.state, end)

    def help(self, int most) -> int:
        """Serves up to `most` queued requests on the calling thread, if runs are that short.

        Returns how many; 0 says that there is nothing to do but wait.
        """
        cdef int num_served = 0
        self.check_fork()
        if self.moved_to is not None:
            return self.find_current().help(most)
        if not is_short(&self.state):
            self.wake_workers()
        elif enter(&self.state):  # what we serve may be another model's; its end waits for ours
            with nogil:
                num_served = self.dispatcher.help(most)
            leave(&self.state)
            if not num_served:
                self.wake_workers()
        else:
            self.wake_workers()
        return num_served

    def wake_workers(self) -> None:
        """Wakes a worker for the backlog, if a group is free."""
        if self.dispatcher.generation == fork_generation():
            self.dispatcher.kick(WAKE_ANY)
            if self.moved_to is not None:  # some may have been queued there
                self.find_current().dispatcher.kick(WAKE_ANY)

    def orphan(self, Inbox inbox, int num_left) -> None:
        """Leaves the `num_left` requests that are still to arrive in `inbox` to `reap`."""
        if num_left and self.dispatcher.generation == fork_generation():
            # Not to be left where nothing may come any more, and nobody look.
            self.find_current().dispatcher.orphans.append((inbox, num_left))
            self.dispatcher.reap()

    cdef Request prepare(
        self, list inputs, object timeout, object priority, bint check_inputs, bint shrinks=False
    ):
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Request request
        cdef double seconds
        self.check_fork()
        if dispatcher.pins.has_news():
            dispatcher.pins.tell()
        # relaxed: enter() looks again.
        if self.state.admission.load(memory_order_relaxed) == CLOSING and self.moved_to is None:
            raise _closed()
        cdef list infos = self.inputs
        if len(inputs) != len(infos):
            infos = self.all_inputs[:len(inputs)]
        if len(inputs) != len(infos) or len(infos) < len(self.inputs):
            names = ", ".join(repr(info.name) for info in self.inputs)
            raise InputError(
                f"expected a list of {len(self.inputs)} input{'s' * (len(self.inputs) != 1)} "
                f"({names}), got {len(inputs)}" + _also(self.overridable)
            )
        request = new_request(self, &self.state, infos, self.outputs, inputs, check_inputs)
        request.state.shrinks = shrinks
        if timeout is not None:
            request.state.submitted_ns = now_ns()
            # Nearly always a float: the check as such costs more than the request does here.
            seconds = (
                timeout if type(timeout) is float and 0 <= timeout <= 1e9
                else check_timeout(timeout)
            )
            request.state.deadline_ns = request.state.submitted_ns + <uint64_t>(seconds * 1e9)
            request.state.is_stoppable = True
            dispatcher.slots.start_watcher()
        if priority is not _NORMAL:
            request.state.priority = check_integer(
                "priority", priority, -1, 1, unit="1 before others, -1 after them"
            )
        if dispatcher.abandoned or dispatcher.orphans:
            dispatcher.reap()
        return request

    cpdef check_fork(self):
        if self.dispatcher.generation != fork_generation():
            raise ForkError(
                "this engine was made before os.fork() and its threads exist only in the parent; "
                "make a new engine in the child, or start workers with the 'spawn' method"
            )

    # --- Numbers ------------------------------------------------------------------------------

    def counts(self) -> tuple:
        """(per group: see statistics.snapshot_group; then see statistics.snapshot_unrun)."""
        cdef int group
        groups = [snapshot_group(&self.state.stats[group]) for group in range(len(self.sessions))]
        return groups, snapshot_unrun(&self.state.unrun)

    @property
    def typical_ns(self) -> int:
        """Smoothed run length in ns; 0 before the first run."""
        return self.state.typical_ns.load(memory_order_relaxed)

    # --- Its memory ---------------------------------------------------------------------------

    def trim(self) -> None:
        """Gives back what the arenas of its sessions keep and do not use now. Requests may run."""
        cdef int group, num_groups = len(self.sessions)
        self.check_fork()
        if not enter(&self.state):  # close() waits until we have left
            return self.successor().trim()
        with nogil:
            for group in range(num_groups):
                # Streams of one core share a session: the same ones follow each other.
                if group == 0 or self.state.sessions[group] != self.state.sessions[group - 1]:
                    shrink(self.state.sessions[group], self.state.output_names)
            leave(&self.state)

    # --- Running together ---------------------------------------------------------------------

    def set_batching(
        self, list sizes, list run_ns, uint64_t item_size=0, Model before=None
    ) -> None:
        """From here on, requests that wait may run together: README, "Batching". Once.

        The sessions' inputs and outputs have an open first dimension.

        Args:
            sizes: ascending numbers of items, the first of them 1; a run has the last at most.
            run_ns: how long runs of so many items take on the narrowest group, in ns.
            item_size: elements of all inputs of one of these items: larger ones count for as many
                as they are larger. 0: whatever their size.
            before: where it has been: what has turned batches off there has done so here.

        Raises:
            ValueError: what is given does not fit; or this was called before.
            ClosedError: the model is closed.
        """
        cdef BatchPlan* plan
        self.check_fork()
        # relaxed: nothing is read through it.
        if self.state.plan.load(memory_order_relaxed) != NULL:
            raise ValueError("this model's requests run together already")
        for infos in (self.inputs, self.outputs):
            if not 0 < len(infos) <= MAX_VALUES:
                raise ValueError(f"expected 1 to {MAX_VALUES} inputs and outputs, got {len(infos)}")
        if not enter(&self.state):  # close() waits until we have left, and gives the plan's part back
            raise _closed()
        try:
            plan = new_plan(self.sessions, sizes, run_ns, item_size)
            if before is not None:
                follow(plan, before.state.plan.load(memory_order_acquire))
            # release: whoever sees the plan sees what is in it.
            self.state.plan.store(plan, memory_order_release)
        finally:
            leave(&self.state)

    def limit_together(self, uint32_t most) -> None:
        """Has runs take `most` items at most. To be called before anybody else uses this model."""
        cdef BatchPlan* plan = self.state.plan.load(memory_order_acquire)  # pairs with set_batching
        if plan != NULL:
            plan.most = min(plan.most, max(most, 1))

    @property
    def most_together(self) -> int:
        """Most items in a run; 1: requests run by themselves."""
        return most_together(self.state.plan.load(memory_order_acquire))  # pairs with set_batching

    @property
    def request_ns(self) -> int:
        """Smoothed time that a request takes of its run, in ns; 0 before the first."""
        cdef BatchPlan* plan = self.state.plan.load(memory_order_acquire)  # pairs with set_batching
        if plan == NULL:
            return self.typical_ns
        return <uint64_t>(self.typical_ns * plan.request_cost.load(memory_order_relaxed))

    def note_needless_failure(self) -> None:
        """A request of several parts has failed, and each of these succeeded by itself."""
        cdef BatchPlan* plan = self.state.plan.load(memory_order_acquire)
        if plan != NULL:  # it may have moved since to where nothing runs together
            note_failure(plan, True)

    @property
    def batching_failure(self) -> str | None:
        """Why requests that wait run by themselves, though set_batching was called; None: they run
        together, or it was not called."""
        cdef BatchPlan* plan = self.state.plan.load(memory_order_acquire)  # pairs with set_batching
        return None if plan == NULL else failure_of(plan)

    # --- How it scales ------------------------------------------------------------------------

    def measure(self, int group, list inputs, double seconds) -> int:
        """Shortest of several runs on a core group, in ns; see measuring.measure."""
        return measure(self.dispatcher, group, self.prepare(inputs, None, 0, True), seconds)

    def warm(self, list inputs, groups) -> None:
        """Runs each session once, uncounted: a first run fills the arena, and takes longer. Nobody
        may use its dispatcher yet. `groups`: all; of those that share a session the first one runs
        it."""
        cdef Session session
        cdef set done = set()
        for group in groups:
            session = self.sessions[group]
            if session not in done:
                done.add(session)
                is_lone = session.team.num_started == 0
                warm(self.dispatcher, group, self.prepare(inputs, None, 0, True), is_lone)

    def set_run_ns(self, list run_ns) -> None:
        """Sets what the elastic policy is to believe until runs tell: the run length by core group
        when nothing else runs, in ns; 0: unknown. Groups of one width share it."""
        cdef Dispatcher dispatcher = self.dispatcher
        self.state.estimates.num_changes.store(
            dispatcher.elastic.distances.num_changes.load(memory_order_relaxed), memory_order_relaxed
        )
        for group, ns in enumerate(run_ns):
            believe(self.state.estimates, dispatcher.elastic.tree.level_of[group], ns, now_ns())

    def run_ns(self) -> list:
        """What the elastic policy takes runs to last by core group when nothing else runs, in ns; 0:
        unknown."""
        cdef Dispatcher dispatcher = self.dispatcher
        return [
            int(self.state.estimates.run_ns[ALONE][dispatcher.elastic.tree.level_of[group]].load(
                memory_order_relaxed
            ))
            for group in range(dispatcher.num_groups)
        ]

    def keep_narrow(self) -> None:
        """Has each request take one stream, however long its runs are. To be called before anybody
        else uses this model."""
        self.state.estimates.stays_narrow.store(1, memory_order_relaxed)

    # --- Moving: README, "Moving" ---------------------------------------------------------------

    @property
    def current(self) -> Model:
        """The model that it has moved to, the last of several; or itself."""
        return self.find_current()

    def move_to(self, Model model not None) -> None:
        """From here on requests go to `model`; those that this one has accepted run where they are.
        """
        cdef uint32_t is_open = OPEN
        # First: who is not counted in any more looks for it. Once: others read it meanwhile.
        if self.moved_to is None:
            self.moved_to = model
        # seq_cst: see enter(). Not if it is closing, which says more.
        self.state.admission.compare_exchange_strong(is_open, MOVED, memory_order_seq_cst)

    def drain(self) -> None:
        """After `move_to`: waits until all that it has accepted has ended."""
        if self.dispatcher.generation == fork_generation():
            with nogil:
                self.dispatcher.turnstile.dismiss_all()
                self.dispatcher.kick(WAKE_ANY)
            self.wait_until_idle()

    cdef Model find_current(self):
        cdef Model model = self
        while model.moved_to is not None:
            model = model.moved_to
        return model

    cdef Model successor(self):
        """For a request that this model has not accepted. Raises ClosedError if there is none."""
        if self.moved_to is None:
            raise _closed()
        return self.find_current()

    # --- Its end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuses new requests, ends the queued ones as closed, waits for the running ones."""
        cdef Dispatcher dispatcher = self.dispatcher
        cdef Session session
        if dispatcher.generation != fork_generation():
            return  # the threads and the sessions are the parent's
        self.state.admission.store(CLOSING, memory_order_seq_cst)
        # Whoever waits for space in the queue looks at `admission` again.
        dispatcher.backlog.announce_space(WAKE_ALL)
        with nogil:
            dispatcher.turnstile.dismiss_all()
        self.wait_until_idle()
        dispatcher.reap()
        with cython.critical_section(self):  # of two callers one finds NULL
            release_allocators(self.state.plan.load(memory_order_acquire))
        for session in self.sessions:
            session.close()

    cdef wait_until_idle(self):
        cdef uint32_t in_flight
        while True:
            in_flight = self.state.in_flight.load(memory_order_seq_cst)
            if in_flight == 0:
                return
            with nogil:
                # In slices: a signal may arrive.
                futex_wait(&self.state.in_flight, in_flight, SIGNAL_CHECK_NS)
            PyErr_CheckSignals()


# Of all models so far.
cdef atomic[uint32_t] _num_models

cdef object _NORMAL = 0


cdef str _also(list overridable):
    names = ", ".join(repr(info.name) for info in overridable)
    return f"; {names}, which have defaults, may follow" if names else ""


cdef _closed():
    return ClosedError("this engine is closed; compile the model again to use it")


cdef int64_t _patience(uint64_t deadline_ns) noexcept nogil:
    """How long to wait for space before the next check_interrupts."""
    cdef uint64_t now
    if deadline_ns == NO_DEADLINE:
        return SIGNAL_CHECK_NS
    now = now_ns()
    if deadline_ns <= now:
        return 0
    return min(<int64_t>(deadline_ns - now), SIGNAL_CHECK_NS)


cdef time_left(Request request):
    """What is left of its timeout, in s; None if it has none."""
    cdef uint64_t now
    if request.state.deadline_ns == NO_DEADLINE:
        return None
    now = now_ns()
    return (request.state.deadline_ns - now) / 1e9 if now < request.state.deadline_ns else 0.0
