"""Context: a budget of cores, cut into streams, and the runtime that serves them."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from deepsched.errors import ClosedError, ForkError, OptionError, StreamConfigError
from deepsched.integers import check_integer
from deepsched.invocation.futures import FutureResolver
from deepsched.machine.partition import PartitionWarning, Stream, WarningKind, partition
from deepsched.machine.topology import Topology
from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.library import has_bounded_spinning
from deepsched.runtime.model import Model
from deepsched.runtime.policy import GroupTree as NativeTree
from deepsched.runtime.session import Session, open_session
from deepsched.scheduler import Scheduler
from deepsched.scheduling.group_tree import GroupTree, tree_of
from deepsched.scheduling.model_registry import Roster
from deepsched.scheduling.scaling import run_lengths
from deepsched.scheduling.stats import Counts, Stats
from deepsched.timeline.trace import Trace

if TYPE_CHECKING:
    from deepsched.engine import Engine
    from deepsched.models.compiled import Source

logger = logging.getLogger("deepsched")


class Inspection(NamedTuple):
    """How sessions are opened that are there to be looked into."""

    profile_to: str | None
    """Where ONNX Runtime writes their timelines: the beginning of a path; None for nowhere."""
    optimizes: bool
    """Whether it optimises the model, as it does for engines."""


# How long a worker whose queue ran dry looks for more, in ns. -1: as long as a wake-up takes here.
_SPIN_NS = {"auto": -1, "latency": 1_000_000, "power": 0}

_ELASTIC_SPIN_US = 100

# Streams of an elastic context: they are claimed several at a time, in one word.
_MOST_ELASTIC = 64

_numbers = itertools.count()
_open_contexts: weakref.WeakSet[Context] = weakref.WeakSet()


class Context:
    """The streams that one or several engines share.

    Engines of one context take turns on the same streams instead of fighting over cores.

    Args:
        num_cores: how many physical cores to use; None for all that this process may use: the
            affinity mask, the cgroup's cpuset and CPU quota count, not the machine.
        num_streams: how many requests run side by side; None for one per L3 cache (elastic: one
            per core, at most 64).
        scheduler: "single_stream" (one request at a time, on all cores), "multi_stream" (one per
            stream) or "elastic" (each takes one stream or several neighbours, as the load allows);
            DeepSparse's words are taken too.
        pin: "core" pins threads to their stream's cores; "none" leaves them to the kernel.
        topology: the machine; None detects this one. Another one needs pin="none".
        queue_capacity: how many requests may wait; calls beyond it wait for room or raise
            QueueFull.
        spin: what threads without work do. "auto": look for more for about as long as a wake-up
            takes, not at all under a CPU quota or without pinning; "latency": look for more for
            1 ms, and ORT's threads until the next request; "power": sleep at once.

    Raises:
        StreamConfigError: no such streams can be made here.
        OptionError: an option has a value that is not allowed.
        ThreadError: the system refuses the threads.

    Example:
        >>> from deepsched import Context, Topology
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
        >>> with Context(topology=machine, num_streams=4, pin="none") as context:
        ...     [stream.cpus for stream in context.streams]
        [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    """

    def __init__(
        self,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = "multi_stream",
        pin: str = "core",
        topology: Topology | None = None,
        *,
        queue_capacity: int = 1024,
        spin: str = "auto",
        _is_shared: bool = True,
        _inspection: Inspection | None = None,
    ) -> None:
        self._scheduler = Scheduler.from_str(Scheduler.default if scheduler is None else scheduler)
        if pin not in ("core", "none"):
            raise OptionError(f"pin must be 'core' or 'none', got {pin!r}")
        if spin not in _SPIN_NS:
            raise OptionError(f"spin must be 'auto', 'latency' or 'power', got {spin!r}")
        queue_capacity = check_integer("queue_capacity", queue_capacity, 1, 2**20)
        self._pin = pin
        self._spin = spin
        self._topology = Topology.detect() if topology is None else _check_topology(topology)
        if pin == "core" and not self._topology.is_local and topology != Topology.detect():
            raise StreamConfigError(
                "pin='core' needs the topology of this machine, got another one; use pin='none' "
                "to run its layout unpinned"
            )
        self._streams, self._warnings = self._partition(num_cores, num_streams)
        for warning in self._warnings:
            # A single stream is as wide as the user asked for, whatever it straddles.
            costly = self._scheduler == Scheduler.multi_stream and warning.kind not in (
                WarningKind.shares_l3,
                WarningKind.uneven_sizes,
            )
            logger.log(logging.WARNING if costly else logging.INFO, "%s", warning)
        if self._scheduler == Scheduler.multi_stream and num_streams is None:
            self._warn_of_one_stream()
        self._is_shared = _is_shared
        self._inspection = _inspection
        self._is_closed = False
        # Reentrant: the garbage collector may close an engine of ours while we hold it.
        self._lock = threading.RLock()
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._name = f"ds{next(_numbers)}"
        cpus = [stream.cpus for stream in self._streams]
        self._tree: GroupTree | None = None
        if self._scheduler == Scheduler.elastic:
            self._tree = tree_of(self._streams)
        self._dispatcher = Dispatcher(
            [list(group) if pin == "core" else None for group in cpus],
            queue_capacity=queue_capacity,
            spin_ns=_SPIN_NS[spin] if self._may_spin else 0,
            thread_prefix=self._name,
            tree=None if self._tree is None else NativeTree(self._tree.leaves, self._tree.parents),
        )
        self._resolver = FutureResolver(f"{self._name}-futures")
        self._born = time.monotonic()
        self._roster = Roster(self._new_counts)
        _open_contexts.add(self)

    def _warn_of_one_stream(self) -> None:
        num_cores = self.num_cores
        if self.num_streams == 1 and num_cores > 1:
            logger.warning(
                "multi_stream makes one stream of all %d cores, since they share one L3 cache: "
                "requests do not run side by side. %s cuts it finer; deepsched advise MODEL tells "
                "what serves most",
                num_cores,
                "num_streams=2" if num_cores == 2 else f"num_streams=2 to {num_cores}",
            )

    def _partition(
        self, num_cores: int | None, num_streams: int | None
    ) -> tuple[tuple[Stream, ...], tuple[PartitionWarning, ...]]:
        if self._scheduler == Scheduler.elastic:
            if num_streams is None:
                whole = partition(self._topology, num_cores, 1).streams[0]
                num_streams = min(len(whole.cores), _MOST_ELASTIC)
            elif (
                check_integer("num_streams", num_streams, 1, error=StreamConfigError)
                > _MOST_ELASTIC
            ):
                raise StreamConfigError(
                    f"an elastic context has at most {_MOST_ELASTIC} streams, got "
                    f"{num_streams}; leave num_streams out, and they have several cores each"
                )
            return partition(self._topology, num_cores, num_streams)
        if self._scheduler != Scheduler.single_stream:
            return partition(self._topology, num_cores, num_streams)
        if num_streams is not None:
            partition(self._topology, num_cores, num_streams)  # a wrong number is still wrong
            if num_streams > 1:
                logger.warning(
                    "num_streams=%d has no effect with single_stream, which runs one request at "
                    "a time on all cores; use scheduler='multi_stream'",
                    num_streams,
                )
        return partition(self._topology, num_cores, 1)

    @property
    def _may_spin(self) -> bool:
        # Spinning under a quota burns what the kernels could have used; spinning on cores that
        # are not ours, or not there, keeps others from working.
        if self._spin != "auto":
            return self._spin == "latency"
        return self._pin == "core" and self._topology.cpu_quota is None

    @property
    def scheduler(self) -> Scheduler:
        """Which requests may run side by side."""
        return self._scheduler

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The slices of the machine; one, of all cores, for single_stream."""
        return self._streams

    @property
    def warnings(self) -> tuple[PartitionWarning, ...]:
        """What is unwise about the streams; logged as well."""
        return self._warnings

    @property
    def topology(self) -> Topology:
        """The machine that the streams are slices of."""
        return self._topology

    @property
    def num_streams(self) -> int:
        """How many requests run side by side."""
        return len(self._streams)

    @property
    def num_cores(self) -> int:
        """How many physical cores the streams have together."""
        return sum(len(stream.cores) for stream in self._streams)

    @property
    def pin(self) -> str:
        """ "core" or "none"."""
        return self._pin

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._is_closed

    def __repr__(self) -> str:
        return (
            f"<Context {self._name}: {self._scheduler}, {self.num_cores} cores in "
            f"{self.num_streams} streams{', closed' if self._is_closed else ''}>"
        )

    @contextmanager
    def trace(self, capacity: int = 1_000_000) -> Iterator[Trace]:
        """Collects a record of each request that ends within the block.

        The trace is filled when the block ends. It can then be saved for Perfetto or drawn. Takes
        well below a microsecond and 40 bytes for each request. One trace at a time.

        Args:
            capacity: how many requests to keep; `Trace.num_dropped` counts those after them.

        Raises:
            OptionError: another trace is under way, or `capacity` is not between 1 and 2**30.

        Example:
            >>> from deepsched import Engine
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     with engine.context.trace() as trace:
            ...         outputs = engine.run(engine.generate_random_inputs())
            >>> trace
            <Trace of 1 requests, single_stream, 1 streams>
        """
        capacity = check_integer("capacity", capacity, 1, 2**30)
        tracer = self._dispatcher.tracer
        trace = Trace(self._scheduler, self._streams, time.monotonic_ns())
        self._roster.keep_names()
        try:
            # Within the block that stops it: Ctrl-C may come at any moment.
            tracer.start(capacity, trace)
            trace.began_ns = time.monotonic_ns()
            yield trace
        finally:
            if not self._dispatcher.is_forked:  # else all is the parent's, its locks too
                entries, num_dropped = tracer.stop(trace)
                ranges = [(i, i + 1) for i in range(len(self._streams))]
                if self._tree is not None:
                    ranges = list(self._tree.leaves)
                depth = self._dispatcher.backlog.depth
                trace._fill(entries, num_dropped, depth, self._roster.let_names_go(), ranges)

    def close(self) -> None:
        """Closes the engines of this context and ends its threads. May be called again."""
        if self._dispatcher.is_forked:
            return  # all of it is the parent's
        with self._lock:
            self._is_closed = True
        for engine in list(self._engines):  # no more come
            engine._close_model()
        self._dispatcher.close()
        self._resolver.close()
        _open_contexts.discard(self)

    def stats(self) -> Stats:
        """What happened to the requests of all its engines, closed ones included.

        Raises:
            ForkError: it belongs to a parent process.
        """
        if self._dispatcher.is_forked:
            raise ForkError(
                "this context was made before os.fork() and is the parent's; make a new one here"
            )
        return self._summary(self._roster.counts(), self._born)

    def _summary(self, counts: Counts, born: float) -> Stats:
        backlog = self._dispatcher.backlog
        return counts.summary(
            time.monotonic() - born, backlog.depth, backlog.highest_depth, backlog.capacity
        )

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Engines keep their context: there are none any more. Not made in full: no dispatcher.
        if hasattr(self, "_roster") and not self._is_closed:
            self.close()

    def _spin_config(self) -> dict[str, str]:
        """What ONNX Runtime's threads do between two runs."""
        if not self._may_spin:
            return {"session.intra_op.allow_spinning": "0"}
        if self._tree is not None and has_bounded_spinning():
            # The next run may be in a session on a part of the same cores. This long does not hurt
            # it; and a caller that comes again at once finds the threads awake.
            return {"session.intra_op.spin_duration_us": str(_ELASTIC_SPIN_US)}
        if self._tree is not None or (self._is_shared and self._spin == "auto"):
            # The next request may be another engine's, on the same cores but in another session,
            # whose threads must not compete with ours looking for work.
            return {"session.force_spinning_stop": "1"}
        return {}

    def _new_counts(self) -> Counts:
        return Counts(len(self._streams), None if self._tree is None else self._tree.leaves)

    @property
    def _groups(self) -> list[Stream]:
        """What a session is opened for: the streams, and where they may be taken together, the
        wider core groups."""
        if self._tree is None:
            return list(self._streams)
        return [
            Stream(
                group,
                tuple(core for stream in self._streams[low:high] for core in stream.cores),
                self._tree.cpus(group),
            )
            for group, (low, high) in enumerate(self._tree.leaves)
        ]

    def _measure_speed(self, model: Model, inputs: list[Any], folder: str | None) -> None:
        """Tells an elastic context's model how long its runs take on groups of each width."""
        if self._tree is None:
            return
        layout = json.dumps(
            [self._pin, self._spin, self._topology.cpu_quota, [s.cpus for s in self._streams]]
        )
        lengths = run_lengths(
            self._tree,
            lambda group, seconds: model.measure(group, inputs, seconds),
            folder,
            hashlib.sha256(layout.encode()).hexdigest()[:16],
        )
        model.set_run_ns(lengths)

    def _open_session(self, source: Source, stream: Stream, save_to: str | None) -> Session:
        """A session whose threads stand on the cores of `stream`."""
        config = {**source.config, **self._spin_config()}
        is_optimized, profile_to = source.is_optimized, None
        if self._inspection is not None:
            is_optimized = is_optimized or not self._inspection.optimizes
            # The session that saves the compiled form is not the one that runs.
            profile_to = self._inspection.profile_to if save_to is None else None
        return open_session(
            source.model,
            num_threads=len(stream.cpus),
            cpus=list(stream.cpus) if self._pin == "core" else None,
            thread_prefix=f"{self._name}-s{stream.index}",
            config=config,
            name=source.name,
            is_optimized=is_optimized,
            save_to=save_to,
            profile_to=profile_to,
        )

    def _adopt(self, engine: Engine) -> None:
        """From here on, closing the context closes `engine`, which has its model."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("this context is closed; make a new one")
            # First, since whoever finds it among the engines may close it.
            self._roster.add(engine._model, engine._traced)
            self._engines.add(engine)


def _check_topology(topology: Topology) -> Topology:
    if not isinstance(topology, Topology):
        raise OptionError(f"topology must be a Topology, got {type(topology).__name__}")
    return topology


@atexit.register
def _close_all() -> None:
    """Threads that run while the interpreter goes away crash it."""
    for context in list(_open_contexts):
        context.close()
