"""SharedStreams: the streams of one context while they serve, and the models served on them.

Context and Engine both hold it; tools of this package ask it, and no private of either.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any, NamedTuple

from deepsched.checks import check_integer
from deepsched.errors import ClosedError, OptionError
from deepsched.invocation.futures import FutureResolver
from deepsched.machine.partition import Stream
from deepsched.machine.shape import cpu_models, describe_shape
from deepsched.machine.state import neighbour_trips_ns
from deepsched.models.compiled import OpenedModel
from deepsched.models.numa_copies import nodes_of
from deepsched.models.sources import Source
from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.model import Model
from deepsched.runtime.policy import PolicyTree
from deepsched.runtime.session import Session, open_session
from deepsched.scheduling.layout import Layout
from deepsched.scheduling.model_registry import ModelRegistry
from deepsched.scheduling.scaling import run_lengths
from deepsched.scheduling.stats import Counts, Stats
from deepsched.timeline.records import TracedModel

# How long a worker whose queue ran dry spins, in ns. -1: as long as a wake-up takes here.
_SPIN_NS = {"auto": -1, "latency": 1_000_000, "power": 0}

_ELASTIC_SPIN_US = 100

_numbers = itertools.count()


class Inspection(NamedTuple):
    """Opens sessions to be profiled, not to serve."""

    profile_to: str | None
    """Prefix of the path that ONNX Runtime writes its timelines to; None writes none."""
    optimizes: bool
    """Whether ONNX Runtime optimises the model, as it does for engines."""


class SharedStreams:
    """Dispatcher, futures and models of one context.

    Args:
        is_exclusive: only one engine will use them, so ONNX Runtime's threads may spin between its
            runs: no other session wants their cores.
        inspection: for sessions that are to be profiled.

    Raises:
        OptionError: `spin` or `queue_capacity` has a value that is not allowed.
        ThreadError: the system refuses the threads.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        queue_capacity: int = 1024,
        spin: str = "auto",
        is_exclusive: bool = False,
        inspection: Inspection | None = None,
    ) -> None:
        if spin not in _SPIN_NS:
            raise OptionError(f"spin must be 'auto', 'latency' or 'power', got {spin!r}")
        queue_capacity = check_integer("queue_capacity", queue_capacity, 1, 2**20)
        self.layout = layout
        self.name = f"ds{next(_numbers)}"
        self._spin = spin
        self._is_exclusive = is_exclusive
        self._inspection = inspection
        tree = layout.tree
        is_pinned = layout.pin == "core"
        self.dispatcher = Dispatcher(
            [list(stream.cpus) if is_pinned else None for stream in layout.streams],
            queue_capacity=queue_capacity,
            spin_ns=_SPIN_NS[spin] if self._may_spin else 0,
            thread_prefix=self.name,
            tree=None if tree is None else PolicyTree(tree.leaves, tree.parents, tree.straddling),
        )
        self.resolver = FutureResolver(f"{self.name}-futures")
        self.registry = ModelRegistry(self.new_counts)
        self.is_closed = False
        self._born = time.monotonic()

    def close(self) -> None:
        """Closes the models and ends the threads. May be called again, also while it runs: by a
        signal handler, or by the garbage collector."""
        if self.dispatcher.is_forked:
            return  # all of it is the parent's
        self.is_closed = True
        for served in self.registry.served():  # no more come: see serve()
            served.close()
        self.dispatcher.close()
        self.resolver.close()
        self.registry.drain()  # breaks the cycle of a model and its streams

    # --- Models -----------------------------------------------------------------------------

    @property
    def is_inspected(self) -> bool:
        """Whether sessions are to be profiled."""
        return self._inspection is not None

    @property
    def compile_options(self) -> dict[str, object]:
        """What decides how `open_session` compiles a model, beside the model; JSON."""
        return {"optimizes": self._inspection is None or self._inspection.optimizes}

    def open_session(self, source: Source, stream: Stream, save_to: str | None) -> Session:
        """A session whose threads are pinned to the cores of `stream`."""
        is_optimized, profile_to = source.is_optimized, None
        if self._inspection is not None:
            is_optimized = is_optimized or not self._inspection.optimizes
            # The session that saves the compiled form is not the one that runs.
            profile_to = self._inspection.profile_to if save_to is None else None
        return open_session(
            source.model,
            num_threads=len(stream.cpus),
            cpus=list(stream.cpus) if self.layout.pin == "core" else None,
            thread_prefix=f"{self.name}-s{stream.index}",
            config={**source.config, **self._spin_config()},
            name=source.name,
            is_optimized=is_optimized,
            save_to=save_to,
            profile_to=profile_to,
            custom_ops=source.custom_ops,
            files=source.files,
            nodes=nodes_of(stream) if len(self.layout.topology.numa_nodes) > 1 else (),
        )

    def measure_scaling(self, served: ServedModel, inputs: list[Any]) -> None:
        """Tells the elastic policy how long the model's runs take on groups of each width: what it
        starts from, and corrects in service.

        Before anybody else uses the model. Does nothing where runs have one width.
        """
        layout = self.layout
        if layout.tree is None:
            return
        cores = [core for stream in layout.streams for core in stream.cores]
        conditions = [
            layout.pin,
            self._spin,
            layout.topology.cpu_quota,
            [len(stream.cpus) for stream in layout.streams],
            describe_shape(cores),
            cpu_models(),
        ]
        model = served.model
        lengths = run_lengths(
            layout.tree,
            lambda group, seconds: model.measure(group, inputs, seconds),
            served.opened.measurements,
            conditions,
            None if layout.pin == "none" else {cpu for core in cores for cpu in core.cpus},
            () if layout.pin == "none" else neighbour_trips_ns([core.cpus[0] for core in cores]),
        )
        model.set_run_ns(lengths)

    def serve(self, served: ServedModel) -> None:
        """From here on, closing the streams closes the model.

        Raises:
            ClosedError: they have been closed.
        """
        # Add, then look. close() sets the flag, then looks for models: one of the two sees the
        # other. A lock would not do, as a signal handler may close us between any two lines.
        self.registry.add(served)
        if self.is_closed:
            served.close()
            raise ClosedError("this context is closed; make a new one")

    # --- Numbers ----------------------------------------------------------------------------

    def new_counts(self) -> Counts:
        """Counts of nothing yet, by stream."""
        return Counts(len(self.layout.streams), self.layout.ranges)

    def stats(self, counts: Counts, born: float | None = None) -> Stats:
        """`counts` and the queue's figures. `born`: when counting began, of time.monotonic."""
        backlog = self.dispatcher.backlog
        seconds = time.monotonic() - (self._born if born is None else born)
        stats = counts.summary(seconds, backlog.depth, backlog.max_depth, backlog.capacity)
        return replace(stats, lost_cpus=tuple(self.dispatcher.pins.lost_cpus))

    # --- Spinning ---------------------------------------------------------------------------

    @property
    def _may_spin(self) -> bool:
        # Spinning under a quota burns what the kernels could have used; spinning on cores that
        # are not ours, or not there, keeps others from working.
        if self._spin != "auto":
            return self._spin == "latency"
        return self.layout.pin == "core" and self.layout.topology.cpu_quota is None

    def _spin_config(self) -> dict[str, str]:
        """What ONNX Runtime's threads do between two runs."""
        if not self._may_spin:
            return {"session.intra_op.allow_spinning": "0"}
        if self.layout.tree is not None:
            # The next run may be in a session on a part of the same cores. This long does not hurt
            # it; and a caller that comes again at once finds the threads awake.
            return {"session.intra_op.spin_duration_us": str(_ELASTIC_SPIN_US)}
        if not self._is_exclusive and self._spin == "auto":
            # The next request may be another engine's, on the same cores but in another session,
            # whose threads must not compete with ours looking for work.
            return {"session.force_spinning_stop": "1"}
        return {}


class ServedModel:
    """A model on the streams: its native form, its sessions, and what goes when it is closed."""

    def __init__(self, streams: SharedStreams, opened: OpenedModel, name: TracedModel) -> None:
        batching = opened.compiled.batching
        # With batches, the sessions take any number of items; a request still has its own.
        self.model = Model(
            streams.dispatcher, opened.sessions, opened.batch_size if batching.sizes else None
        )
        if batching.sizes:
            self.model.set_batching(opened.sessions, list(batching.sizes), list(batching.run_ns))
        self.opened = opened
        self.name = name
        """What traces call it."""
        self.is_closed = False
        self._is_retired = False
        self._streams = streams

    def counts(self) -> Counts:
        """What happened to its requests so far."""
        counts = self._streams.new_counts()
        counts.add(self.model.counts())
        return counts

    def close(self) -> None:
        """Ends queued requests as closed, waits for the running ones, frees the sessions. May be
        called again; by the garbage collector too, at any moment and in any thread."""
        self.is_closed = True
        self.model.close()  # again, too: Ctrl-C may have ended the first early
        # Each of these may be done twice, and none is left out if Ctrl-C comes in between.
        if not self._is_retired:
            self._streams.registry.retire(self.model)
            self._is_retired = True
        if self.opened.entry is not None:
            self.opened.entry.close()
