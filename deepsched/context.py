"""Context: a budget of cores, cut into streams, that one or several engines share."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepsched.checks import check_integer
from deepsched.errors import ClosedError, CopyError, ForkError, OptionError
from deepsched.formatting import counted
from deepsched.machine.leases import Lease
from deepsched.machine.partition import PartitionWarning, Stream
from deepsched.machine.topology import Topology
from deepsched.recipe import Uncopied, recipe_of, remake
from deepsched.scheduler import Scheduler
from deepsched.scheduling.layout import Layout, log_warnings
from deepsched.scheduling.stats import Stats
from deepsched.scheduling.streams import Asked, SharedStreams, share_streams
from deepsched.timeline.trace import Trace

logger = logging.getLogger("deepsched")

# By id. Not a WeakSet, which another thread may change while it is listed.
_open_contexts: dict[int, weakref.ref[Context]] = {}


def open_contexts() -> list[Context]:
    """Those of this process, engines' own included; not those of a parent."""
    found = [reference() for reference in list(_open_contexts.values())]
    return [it for it in found if it is not None and not it._shared.dispatcher.is_forked]


class Context(Uncopied):
    """The streams that one or several engines share.

    Engines of one context take turns on the same streams instead of fighting over cores. Pickled,
    it is the call that made it; engines that are pickled together share one where they arrive.

    Args:
        num_cores: number of physical cores to use; None for all that this process may use: what
            counts is the affinity mask, the cgroup's cpuset and its CPU quota, not the machine.
        num_streams: number of requests that run in parallel; None for one per L3 cache (elastic:
            one per core, at most 64).
        scheduler: "single_stream" (one request at a time, on all cores), "multi_stream" (one per
            stream) or "elastic" (each takes one stream or several neighbours, as the load allows);
            DeepSparse's words are taken too.
        pin: "auto" pins threads to their stream's cores, unless the system refuses it, which is
            logged; "core" insists on it; "none" leaves them to the kernel.
        topology: the machine; None detects this one. Another one needs pin="none".
        queue_capacity: bound of the queue; calls beyond it wait for room or raise QueueFull.
        spin: what idle threads do. "auto": spin for about as long as a wake-up takes, not at all
            under a CPU quota or without pinning; "latency": spin for 1 ms, ORT's threads until the
            next request; "power": park at once.
        cores: "lease" takes whole cores that no other live process of deepsched has, next to one
            another, and keeps them until it is closed or the process ends; without num_cores all
            that are free, in a worker an equal share. "share" takes cores of the budget whoever
            else uses them, which is logged. None: as DEEPSCHED_CORES says; unless that is set
            "lease" in a worker of gunicorn, uvicorn, Celery or a process pool, else "share".
        lease_timeout: seconds to wait for cores that other processes have.
        follow: "cpuset" does by itself what `resize` does, within a second or two of a change of
            the affinity mask, the cgroup's cpuset or its CPU quota.

    Raises:
        StreamConfigError: the streams are not possible on this machine.
        OptionError: an option has a value that is not allowed.
        LeaseError: too few cores are free for a lease; names who has them.
        ThreadError: the system refuses the threads, or to pin them as pin="core" says.

    Example:
        >>> from deepsched import Context, Topology
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
        >>> with Context(topology=machine, num_streams=4, pin="none") as context:
        ...     [stream.cpus for stream in context.streams]
        [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    """

    _recipe: dict[str, Any] | None = None
    """None: made by an engine, for itself."""

    def __init__(
        self,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = "multi_stream",
        pin: str = "auto",
        topology: Topology | None = None,
        *,
        queue_capacity: int = 1024,
        spin: str = "auto",
        cores: str | None = None,
        lease_timeout: float = 0.0,
        follow: str | None = None,
    ) -> None:
        self._recipe = recipe_of(locals())
        named = Scheduler.from_str(Scheduler.default if scheduler is None else scheduler)
        if follow not in (None, "cpuset"):
            raise OptionError(f"follow must be 'cpuset' or None, got {follow!r}")
        if follow is not None and topology is not None:
            raise OptionError("follow='cpuset' follows this machine; leave topology out")
        asked = Asked(num_cores, num_streams, named, pin, topology, follow)
        self._hold(
            share_streams(asked, cores, lease_timeout, queue_capacity=queue_capacity, spin=spin)
        )
        log_warnings(self._layout, num_streams)

    @classmethod
    def _over(cls, shared: SharedStreams) -> Context:
        """A context for streams that were created otherwise: an engine's own, or a profiler's."""
        context = cls.__new__(cls)
        context._hold(shared)
        return context

    def _hold(self, shared: SharedStreams) -> None:
        self._shared = shared
        # At exit the module's name for it may be gone before we are.
        self._listed_in = _open_contexts
        self._listed_in[id(self)] = weakref.ref(self)

    @property
    def _layout(self) -> Layout:
        return self._shared.layout

    @property
    def scheduler(self) -> Scheduler:
        """Which requests may run in parallel."""
        return self._layout.scheduler

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Slices of the machine; a single one, of all cores, for single_stream."""
        return self._layout.streams

    @property
    def warnings(self) -> tuple[PartitionWarning, ...]:
        """Costs of this layout of streams; logged as well."""
        return self._layout.warnings

    @property
    def topology(self) -> Topology:
        """The machine that the streams are slices of."""
        return self._layout.topology

    @property
    def num_streams(self) -> int:
        """Number of requests that run in parallel."""
        return len(self._layout.streams)

    @property
    def num_cores(self) -> int:
        """Number of physical cores of all streams together."""
        return self._layout.num_cores

    @property
    def lease(self) -> Lease | None:
        """The lease on its cores; None if it shares them with whoever uses them."""
        return self._shared.placement.lease

    @property
    def pin(self) -> str:
        """ "core" if threads are pinned to their stream's cores, else "none"."""
        return self._layout.pin

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._shared.is_closed

    def __repr__(self) -> str:
        return (
            f"<Context {self._shared.name}: {self.scheduler}, {counted(self.num_cores, 'core')} in "
            f"{counted(self.num_streams, 'stream')}{', closed' if self.is_closed else ''}>"
        )

    @contextmanager
    def trace(self, capacity: int = 1_000_000) -> Iterator[Trace]:
        """Records each request that ends within the block.

        The trace is filled when the block ends. It can then be saved for Perfetto or drawn. Costs
        well below a microsecond and 40 bytes per request. One trace at a time.

        Args:
            capacity: number of requests to keep; `Trace.num_dropped` counts those beyond it.

        Raises:
            OptionError: another trace is under way, or `capacity` is not between 1 and 2**30.

        Example:
            >>> from deepsched import Engine
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     with engine.context.trace() as trace:
            ...         outputs = engine.run(engine.generate_random_inputs())
            >>> trace
            <Trace of 1 request, single_stream, 1 stream>
        """
        capacity = check_integer("capacity", capacity, 1, 2**30)
        registry = self._shared.registry
        self._check_fork()  # before it takes a lock that a thread of the parent may have held
        registry.retain_names()  # from here on it is not moved
        dispatcher, layout = self._shared.dispatcher, self._layout
        tracer = dispatcher.tracer
        trace = Trace(self.scheduler, self.streams, time.monotonic_ns())
        try:
            # Within the block that stops it: Ctrl-C may come at any moment.
            tracer.start(capacity, trace)
            trace.began_ns = time.monotonic_ns()
            yield trace
        finally:
            if not dispatcher.is_forked:  # else all is the parent's, its locks too
                entries, num_dropped = tracer.stop(trace)
                num_waiting = dispatcher.backlog.depth
                names = registry.release_names()
                trace._fill(entries, num_dropped, num_waiting, names, layout.ranges)

    def resize(
        self, num_cores: int | None = None, num_streams: int | None = None, *, timeout: float = 0.0
    ) -> None:
        """Goes on with another number of cores, or on the cores that there are by now.

        Its engines are opened on the new cores, from their compiled form, while they serve on the
        old ones. Then requests go to the new streams; those that were accepted before run where
        they are, and the old streams end with the last of them, which is when this returns. No
        request is lost, and none waits for the opening. A lease takes what it lacks before, and
        gives back what it does not need after.

        Args:
            num_cores: as for Context; None for all that this process may use by now.
            num_streams: None for as many as Context was asked for, or as there are cores.
            timeout: seconds to wait for cores that other processes have leased.

        Raises:
            StreamConfigError, ThreadError, LeaseError: see Context; the old streams serve on.
            ModelError: a model cannot be opened again; the old streams serve on.
            OptionError: it is being traced.
            ClosedError, ForkError: it is closed, or belongs to a parent process.

        Example:
            >>> from deepsched import Context
            >>> with Context(num_cores=1) as context:
            ...     context.resize()
            ...     context.num_cores == len(context.topology.cores)
            True
        """
        self._check_fork()
        self._shared.resize(num_cores, num_streams, timeout)

    def close(self) -> None:
        """Closes the engines of this context and ends its threads. May be called again."""
        self._shared.close()
        self._listed_in.pop(id(self), None)

    def stats(self) -> Stats:
        """Outcomes and latencies of the requests of all its engines, closed ones included.

        Raises:
            ForkError: it belongs to a parent process.
        """
        self._check_fork()
        return self._shared.stats(self._shared.registry.counts())

    def _check_fork(self) -> None:
        if self._shared.dispatcher.is_forked:
            raise ForkError(
                "this context was created before os.fork() and is the parent's; create one here"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_closed:
            raise ClosedError("this context is closed; pickle it before")
        if self._recipe is None:
            raise CopyError(
                "this context is an engine's own; pickle the engine, which makes one where it "
                "arrives"
            )
        return remake, (type(self), Context, self._recipe)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Engines keep their context, so there are none any more. If __init__ failed there is
        # nothing to close. Closed again, too: Ctrl-C may have ended the first early.
        if hasattr(self, "_shared"):
            self.close()


@atexit.register
def _close_all() -> None:
    """Threads that run while the interpreter goes away crash it."""
    for context in open_contexts():
        try:
            context.close()
        except Exception:  # the others are to be closed all the same
            logger.exception("%r could not be closed at exit", context)
