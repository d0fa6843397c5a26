"""SharedStreams: the streams of one context while they serve, and the models served on them.

Context and Engine both hold it; tools of this package ask it, and no private of either.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from deepsched.checks import check_timeout
from deepsched.errors import ClosedError
from deepsched.invocation.futures import FutureResolver
from deepsched.machine.leases import Lease, take_lease
from deepsched.machine.partition import most_cores, partition
from deepsched.machine.sysfs import format_cpu_list
from deepsched.machine.topology import Topology
from deepsched.runtime.dispatch import Dispatcher
from deepsched.scheduler import Scheduler
from deepsched.scheduling.cores import lease_cores, topology_of
from deepsched.scheduling.following import Follower
from deepsched.scheduling.layout import Layout, check_topology, lay_out, log_warnings
from deepsched.scheduling.model_registry import ModelRegistry
from deepsched.scheduling.opening import Opener
from deepsched.scheduling.placement import Inspection, Manner, Placement
from deepsched.scheduling.served import Placed, ServedModel
from deepsched.scheduling.stats import Counts, Stats

logger = logging.getLogger("deepsched")

_numbers = itertools.count()


class Asked(NamedTuple):
    """What a context's user asked for; see Context."""

    num_cores: int | None
    num_streams: int | None
    scheduler: Scheduler
    pin: str
    topology: Topology | None
    follow: str | None = None


class SharedStreams:
    """Dispatcher, futures and models of one context.

    Args:
        lease: of the cores of the layout; this owns it. None: they are shared.
        is_exclusive: only one engine will use them, so ONNX Runtime's threads may spin between its
            runs: no other session wants their cores.
        inspection: for sessions that are to be profiled.
        asked: what `resize` starts from.

    Raises:
        OptionError: `spin` or `queue_capacity` has a value that is not allowed.
        ThreadError: the system refuses the threads.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        lease: Lease | None = None,
        queue_capacity: int = 1024,
        spin: str = "auto",
        is_exclusive: bool = False,
        inspection: Inspection | None = None,
        asked: Asked | None = None,
    ) -> None:
        self.name = f"ds{next(_numbers)}"
        self._manner = Manner(self.name, queue_capacity, spin, is_exclusive, inspection).checked()
        self._asked = asked or Asked(None, None, layout.scheduler, layout.pin, None)
        self.placement = Placement(layout, lease, self._manner)
        """Where the streams are; changed by `resize` only."""
        self._moving = threading.RLock()  # a signal handler may come between
        """Held by whoever moves models from one placement to another."""
        self._left: deque[Placement] = deque()
        """Placements where requests may still run; the present one too, while it is being left."""
        self._most_queued = 0
        self.resolver = FutureResolver(f"{self.name}-futures")
        self.registry = ModelRegistry(lambda: self.placement.new_counts())
        self.is_closed = False
        self._born = time.monotonic()
        self._follower = Follower(self, f"{self.name}-follow") if self._asked.follow else None

    @property
    def layout(self) -> Layout:
        """Its streams."""
        return self.placement.layout

    @property
    def dispatcher(self) -> Dispatcher:
        """What requests go to."""
        return self.placement.dispatcher

    def close(self) -> None:
        """Closes the models and ends the threads. May be called again, also while it runs: by a
        signal handler, or by the garbage collector."""
        if self.dispatcher.is_forked:
            return  # all of it is the parent's
        self.is_closed = True
        if self._follower is not None:
            self._follower.close()
        for served in self.registry.served():  # no more come: see serve()
            served.close()
        for placement in list(self._left):
            placement.close()
        self.placement.close()
        self.resolver.close()
        self.registry.drain()  # breaks the cycle of a model and its streams

    # --- Models -----------------------------------------------------------------------------

    def open(self, opener: Opener) -> ServedModel:
        """Opens a model where the streams are. To be given to `serve`, or closed.

        Raises:
            What `Opener.open` raises.
        """
        return ServedModel(self.placement, opener, self.registry.retire)

    def serve(self, served: ServedModel) -> None:
        """From here on, closing the streams closes the model, and it moves with them.

        Raises:
            ClosedError: they have been closed.
        """
        # Add, then look. close() sets the flag, then looks for models: one of the two sees the
        # other. A lock would not do, as a signal handler may close us between any two lines.
        self.registry.add(served)
        if self.is_closed:
            served.close()
            raise ClosedError("this context is closed; make a new one")
        if served.placed.placement is not self.placement:  # resize() sets it, then looks for models
            with self._moving:
                self._settle({})

    # --- Moving: runtime/README.md, "Moving" --------------------------------------------------

    def resize(self, num_cores: int | None, num_streams: int | None, timeout: float) -> None:
        """See Context.resize."""
        timeout = check_timeout(timeout) or 0.0
        with self._moving:
            if self.is_closed:
                raise ClosedError("this context is closed; make a new one")
            self._move(self._machine(), num_cores, num_streams, timeout)
            self._asked = self._asked._replace(
                num_cores=num_cores, num_streams=num_streams or self._asked.num_streams
            )

    def fit(self, machine: Topology) -> None:
        """Moves to what this process may use by now, unless that makes no difference.

        Raises:
            What `resize` raises.
        """
        with self._moving:
            asked, lease = self._asked, self.placement.lease
            # A worker's share stays what it is.
            wanted = asked.num_cores if lease is None else len(lease.cores)
            num_cores = None if wanted is None else min(wanted, most_cores(machine))
            if lease is None:
                cores = partition(machine, num_cores, 1).streams[0].cores
                stays = cores == tuple(it for stream in self.layout.streams for it in stream.cores)
            else:
                stays = num_cores == wanted and set(lease.cores) <= set(machine.cores)
            if not stays and not self.is_closed:
                self._move(machine, num_cores, None, 0.0)
                logger.warning(
                    "the CPUs of this process have changed: %s by now serves on %s",
                    self.name,
                    format_cpu_list(self.layout.topology.cpus),
                )

    def _machine(self) -> Topology:
        """The budget: as it was given, unless it has changed."""
        given = self._asked.topology
        if given is not None and not given.is_local:
            return given
        machine = Topology.detect()
        if given is None or (given.cpus, given.cpu_quota) != (machine.cpus, machine.cpu_quota):
            return machine
        return given

    def _move(
        self, machine: Topology, num_cores: int | None, num_streams: int | None, timeout: float
    ) -> None:
        lease = self.placement.lease
        if lease is not None:
            lease = take_lease(machine, num_cores, timeout, beside=lease)
            machine, num_cores = topology_of(lease, machine), None
        try:
            streams = num_streams
            if streams is None and self._asked.num_streams is not None:
                streams = min(self._asked.num_streams, num_cores or len(machine.cores))
            layout = lay_out(num_cores, streams, self._asked.scheduler, self._asked.pin, machine)
            self._move_to(Placement(layout, lease, self._manner))
        except BaseException:
            if lease is not None and self.placement.lease is not lease:
                lease.close()
            raise
        log_warnings(layout, streams)

    def _move_to(self, target: Placement) -> None:
        """Opens everything there, then takes over, then drains and closes what is left."""
        fresh: dict[ServedModel, Placed | None] = {}
        try:
            self._settle({})  # where an earlier move was interrupted
            while missing := [it for it in self.registry.served() if it not in fresh]:
                for served in missing:
                    fresh[served] = served.open_beside(target)
            self.registry.untraced(partial(self._switch, target))
        except BaseException:
            if self.placement is not target:
                for placed in fresh.values():
                    if placed is not None:
                        placed.model.close()
                target.close()
            raise
        self._settle(fresh)
        if self.is_closed:  # close() sets the flag, then looks for placements
            target.close()

    def _switch(self, target: Placement) -> None:
        most_queued = self.dispatcher.backlog.max_depth
        self._most_queued = max(self._most_queued, most_queued)
        self._left.append(self.placement)
        self.placement = target

    def _settle(self, fresh: Mapping[ServedModel, Placed | None]) -> None:
        """Moves what is not where the streams are, to what is open there if it is among `fresh`;
        then ends what has been left. May be interrupted anywhere, and is then to be done again."""
        for served in self.registry.served():
            if served.placed.placement is not self.placement:
                placed = fresh.get(served) or served.open_beside(self.placement)
                if placed is not None:
                    served.take_over(placed)
        for served in self.registry.served():
            served.settle()
        for placement in list(self._left):
            if placement is not self.placement:
                placement.close()
                if placement in self._left:  # a signal's handler may have moved the context
                    self._left.remove(placement)

    # --- Numbers ----------------------------------------------------------------------------

    def stats(self, counts: Counts, born: float | None = None) -> Stats:
        """`counts` and the queue's figures. `born`: when counting began, of time.monotonic."""
        backlog = self.dispatcher.backlog
        seconds = time.monotonic() - (self._born if born is None else born)
        most = max(self._most_queued, backlog.max_depth)
        stats = counts.summary(seconds, backlog.depth, most, backlog.capacity)
        return replace(stats, lost_cpus=tuple(self.dispatcher.pins.lost_cpus))


def share_streams(
    asked: Asked,
    cores: str | None,
    lease_timeout: float,
    *,
    queue_capacity: int = 1024,
    spin: str = "auto",
    is_exclusive: bool = False,
) -> SharedStreams:
    """Streams on cores of the budget, or on a lease; see Context.

    Raises:
        StreamConfigError, OptionError, ThreadError, LeaseError: see Context.
    """
    num_cores, num_streams, scheduler, pin, topology, _ = asked
    machine = check_topology(topology)
    lease = lease_cores(cores, num_cores, lease_timeout, pin, machine)
    try:
        if lease is not None:
            machine, num_cores = topology_of(lease, machine or Topology.detect()), None
        layout = lay_out(num_cores, num_streams, scheduler, pin, machine)
        return SharedStreams(
            layout,
            lease=lease,
            queue_capacity=queue_capacity,
            spin=spin,
            is_exclusive=is_exclusive,
            asked=asked,
        )
    except BaseException:
        if lease is not None:
            lease.close()
        raise
