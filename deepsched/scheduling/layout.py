"""Layout: the streams of a context, by its scheduler, and the core groups that sessions are for."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

from deepsched.checks import check_integer
from deepsched.errors import OptionError, StreamConfigError, ThreadError
from deepsched.machine.partition import PartitionWarning, Stream, WarningKind, partition
from deepsched.machine.sysfs import format_cpu_list
from deepsched.machine.topology import Topology
from deepsched.runtime.pins import refused_cpus
from deepsched.scheduler import Scheduler
from deepsched.scheduling.group_tree import GroupTree, tree_of

logger = logging.getLogger("deepsched")

# Streams of an elastic context are claimed several at a time, by one compare-and-swap on one word.
MAX_ELASTIC_STREAMS = 64


class Layout(NamedTuple):
    """Streams on a machine, and how requests may take them."""

    scheduler: Scheduler
    topology: Topology
    pin: str
    """ "core" or "none"."""
    streams: tuple[Stream, ...]
    warnings: tuple[PartitionWarning, ...]
    tree: GroupTree | None
    """How an elastic context merges its streams; None for the others."""

    @property
    def num_cores(self) -> int:
        """Physical cores of all streams together."""
        return sum(len(stream.cores) for stream in self.streams)

    @property
    def narrowest(self) -> int:
        """Number of CPUs of the smallest stream."""
        return min(len(stream.cpus) for stream in self.streams)

    def groups_of(self, width: int) -> list[Stream]:
        """`groups`, of each its first `width` CPUs; of one that has fewer, these in turn."""
        return [
            Stream(
                group.index,
                group.cores[:width],
                tuple(itertools.islice(itertools.cycle(group.cpus), width)),
            )
            for group in self.groups
        ]

    @property
    def groups(self) -> list[Stream]:
        """Core groups that get a session each: the streams, then the merged ones of the tree."""
        if self.tree is None:
            return list(self.streams)
        return [
            Stream(
                group,
                tuple(core for stream in self.streams[low:high] for core in stream.cores),
                self.tree.cpus(group),
            )
            for group, (low, high) in enumerate(self.tree.leaves)
        ]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first stream of each core group, and the one after its last."""
        if self.tree is None:
            return [(index, index + 1) for index in range(len(self.streams))]
        return list(self.tree.leaves)


def lay_out(
    num_cores: int | None,
    num_streams: int | None,
    scheduler: Scheduler,
    pin: str,
    topology: Topology | None,
) -> Layout:
    """Cuts the budget into the streams that `scheduler` needs.

    Raises:
        OptionError, StreamConfigError: see Context.
    """
    if pin not in ("auto", "core", "none"):
        raise OptionError(f"pin must be 'auto', 'core' or 'none', got {pin!r}")
    machine = check_topology(topology) or Topology.detect()
    if pin != "none" and not machine.is_local and topology != Topology.detect():
        raise StreamConfigError(
            "pinned threads need the topology of this machine, got another one; use pin='none' to "
            "run its layout unpinned"
        )
    streams, warnings = _partition(machine, num_cores, num_streams, scheduler)
    tree = tree_of(streams) if scheduler == Scheduler.elastic else None
    pinning = "none" if pin == "none" else _pinning(streams, is_asked_for=pin == "core")
    return Layout(scheduler, machine, pinning, streams, warnings, tree)


def _pinning(streams: Sequence[Stream], is_asked_for: bool) -> str:
    """Whether threads can be pinned here: "core" or "none". Raises ThreadError if it is asked for
    and they cannot."""
    try:
        refused = refused_cpus([cpu for stream in streams for cpu in stream.cpus])
        if not refused:
            return "core"
        code, why = errno.EINVAL, f"the cpuset does not allow CPUs {format_cpu_list(refused)}"
    except OSError as error:
        code = error.errno or errno.EPERM
        why = f"{error.strerror}; a sandbox may refuse sched_setaffinity, or sched_getaffinity"
    if is_asked_for:
        raise ThreadError(
            code, f"threads cannot be pinned: {why}. Without pin='core' they run unpinned"
        )
    logger.warning(
        "threads are not pinned: %s. Streams may share cores, and idle threads do not spin, which "
        "costs speed; pin='none' accepts that",
        why,
    )
    return "none"


def check_topology(topology: Topology | None) -> Topology | None:
    """Raises OptionError for what is no Topology."""
    if topology is not None and not isinstance(topology, Topology):
        raise OptionError(f"topology must be a Topology, got {type(topology).__name__}")
    return topology


def _partition(
    topology: Topology, num_cores: int | None, num_streams: int | None, scheduler: Scheduler
) -> tuple[tuple[Stream, ...], tuple[PartitionWarning, ...]]:
    if scheduler == Scheduler.elastic:
        if num_streams is None:
            whole = partition(topology, num_cores, 1).streams[0]
            num_streams = min(len(whole.cores), MAX_ELASTIC_STREAMS)
        elif (
            check_integer("num_streams", num_streams, 1, error=StreamConfigError)
            > MAX_ELASTIC_STREAMS
        ):
            raise StreamConfigError(
                f"an elastic context has at most {MAX_ELASTIC_STREAMS} streams, got "
                f"{num_streams}; leave num_streams out, and they have several cores each"
            )
        return partition(topology, num_cores, num_streams)
    if scheduler != Scheduler.single_stream:
        return partition(topology, num_cores, num_streams)
    if num_streams is not None:
        partition(topology, num_cores, num_streams)  # a wrong number is still wrong
    return partition(topology, num_cores, 1)


def log_warnings(layout: Layout, num_streams: int | None) -> None:
    """Logs what is unwise about a layout for which the user asked for `num_streams`."""
    if layout.scheduler == Scheduler.single_stream and num_streams is not None and num_streams > 1:
        logger.warning(
            "num_streams=%d has no effect with single_stream, which runs one request at a time on "
            "all cores; use scheduler='multi_stream'",
            num_streams,
        )
    for warning in layout.warnings:
        # A single stream is as wide as the user asked for, whatever it straddles.
        is_costly = layout.scheduler == Scheduler.multi_stream and warning.kind not in (
            WarningKind.shares_l3,
            WarningKind.uneven_sizes,
        )
        logger.log(logging.WARNING if is_costly else logging.INFO, "%s", warning)
    if layout.scheduler != Scheduler.multi_stream or num_streams is not None:
        return
    num_cores = layout.num_cores
    if len(layout.streams) == 1 and num_cores > 1:
        logger.warning(
            "multi_stream makes one stream of all %d cores, since they share one L3 cache: "
            "requests do not run in parallel. %s makes more streams; deepsched advise MODEL finds "
            "the number with the highest throughput",
            num_cores,
            "num_streams=2" if num_cores == 2 else f"num_streams=2 to {num_cores}",
        )
