"""Placement: the streams of a context where they are, which they may leave for another."""

from __future__ import annotations

from typing import NamedTuple

from deepsched.checks import check_integer
from deepsched.errors import OptionError
from deepsched.machine.leases import Lease
from deepsched.machine.partition import Stream
from deepsched.models.numa_copies import nodes_of
from deepsched.models.sources import Source
from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.policy import PolicyTree
from deepsched.runtime.session import Session, open_session
from deepsched.scheduling.cores import mark_cores
from deepsched.scheduling.layout import Layout
from deepsched.scheduling.stats import Counts

# How long a worker whose queue ran dry spins, in ns. -1: as long as a wake-up takes here.
_SPIN_NS = {"auto": -1, "latency": 1_000_000, "power": 0}

_ELASTIC_SPIN_US = 100


class Inspection(NamedTuple):
    """Opens sessions to be profiled, not to serve."""

    profile_to: str | None
    """Prefix of the path that ONNX Runtime writes its timelines to; None writes none."""
    optimizes: bool
    """Whether ONNX Runtime optimises the model, as it does for engines."""


class Manner(NamedTuple):
    """What stays the same wherever the streams of a context are; see SharedStreams."""

    name: str
    queue_capacity: int
    spin: str
    is_exclusive: bool
    inspection: Inspection | None

    def checked(self) -> Manner:
        """With plain integers. Raises OptionError for a value that is not allowed."""
        if self.spin not in _SPIN_NS:
            raise OptionError(f"spin must be 'auto', 'latency' or 'power', got {self.spin!r}")
        capacity = check_integer("queue_capacity", self.queue_capacity, 1, 2**20)
        return self._replace(queue_capacity=capacity)


class Placement:
    """The layout, its dispatcher, the sessions' options, and what holds the cores.

    Args:
        lease: of the layout's cores; this owns it. None: they are shared, and marked as used for
            other processes to see.

    Raises:
        ThreadError: the system refuses the threads.
    """

    def __init__(self, layout: Layout, lease: Lease | None, manner: Manner) -> None:
        self.layout = layout
        self.lease = lease
        self._manner = manner
        tree = layout.tree
        is_pinned = layout.pin == "core"
        self.dispatcher = Dispatcher(
            [list(stream.cpus) if is_pinned else None for stream in layout.streams],
            queue_capacity=manner.queue_capacity,
            spin_ns=_SPIN_NS[manner.spin] if self._may_spin else 0,
            thread_prefix=manner.name,
            tree=None if tree is None else PolicyTree(tree.leaves, tree.parents, tree.straddling),
        )
        cores = [core for stream in layout.streams for core in stream.cores]
        self._mark = mark_cores(cores) if is_pinned and lease is None else None

    def close(self) -> None:
        """Ends the threads and gives the cores back. Its models must have been closed. May be
        called again."""
        self.dispatcher.close()
        for held in (self.lease, self._mark):
            if held is not None:
                held.close()

    @property
    def spin(self) -> str:
        """What idle threads do; see Context."""
        return self._manner.spin

    @property
    def is_inspected(self) -> bool:
        """Whether sessions are to be profiled."""
        return self._manner.inspection is not None

    @property
    def compile_options(self) -> dict[str, object]:
        """What decides how `open_session` compiles a model, beside the model; JSON."""
        inspection = self._manner.inspection
        return {"optimizes": inspection is None or inspection.optimizes}

    def new_counts(self) -> Counts:
        """Counts of nothing yet, by stream."""
        return Counts(len(self.layout.streams), self.layout.ranges)

    def open_session(
        self, source: Source, stream: Stream, save_to: str | None, is_aside: bool = False
    ) -> Session:
        """A session whose threads are pinned to the cores of `stream`. `is_aside`: opened at low
        priority."""
        is_optimized, profile_to = source.is_optimized, None
        inspection = self._manner.inspection
        if inspection is not None:
            is_optimized = is_optimized or not inspection.optimizes
            # The session that saves the compiled form is not the one that runs.
            profile_to = inspection.profile_to if save_to is None else None
        return open_session(
            source.model,
            num_threads=len(stream.cpus),
            cpus=list(stream.cpus) if self.layout.pin == "core" else None,
            thread_prefix=f"{self._manner.name}-s{stream.index}",
            config={**source.config, **self._spin_config()},
            name=source.name,
            is_optimized=is_optimized,
            save_to=save_to,
            profile_to=profile_to,
            custom_ops=source.custom_ops,
            files=source.files,
            nodes=nodes_of(stream) if len(self.layout.topology.numa_nodes) > 1 else (),
            is_aside=is_aside,
        )

    # --- Spinning ---------------------------------------------------------------------------

    @property
    def _may_spin(self) -> bool:
        # Spinning under a quota burns what the kernels could have used; spinning on cores that
        # are not ours, or not there, keeps others from working.
        if self._manner.spin != "auto":
            return self._manner.spin == "latency"
        return self.layout.pin == "core" and self.layout.topology.cpu_quota is None

    def _spin_config(self) -> dict[str, str]:
        """What ONNX Runtime's threads do between two runs."""
        if not self._may_spin:
            return {"session.intra_op.allow_spinning": "0"}
        if self.layout.tree is not None:
            # The next run may be in a session on a part of the same cores. This long does not hurt
            # it; and a caller that comes again at once finds the threads awake.
            return {"session.intra_op.spin_duration_us": str(_ELASTIC_SPIN_US)}
        if not self._manner.is_exclusive and self._manner.spin == "auto":
            # The next request may be another engine's, on the same cores but in another session,
            # whose threads must not compete with ours looking for work.
            return {"session.force_spinning_stop": "1"}
        return {}
