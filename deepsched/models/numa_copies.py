"""A copy of a compiled model's weights for each NUMA node."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepsched.machine.partition import Stream
from deepsched.models.entry import Entry
from deepsched.models.locations import SHARED_MEMORY, stage_in
from deepsched.runtime.numa import copy_to_node

logger = logging.getLogger("deepsched")


def home_node(stream: Stream) -> int:
    """The node whose copy of the weights a stream uses: that of its first core; 0 if unknown.

    >>> from deepsched import Topology, partition
    >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
    >>> [home_node(stream) for stream in partition(machine, num_streams=3)[0]]
    [0, 0, 1]
    """
    return next(iter(stream.numa_nodes), 0)


@contextlib.contextmanager
def numa_copies(entry: Entry, streams: Sequence[Stream]) -> Iterator[dict[int, Path]]:
    """The model file to open on each NUMA node; empty where the entry itself serves all streams.

    At the block's end the copies lose their names: sessions that have them mapped keep them.
    """
    nodes = sorted({home_node(stream) for stream in streams})
    with contextlib.ExitStack() as stack:
        copies: dict[int, Path] = {}
        if len(nodes) > 1 and entry.weights.exists():
            try:
                for node in nodes:
                    copy = stack.enter_context(stage_in(SHARED_MEMORY, in_memory=True))
                    shutil.copyfile(entry.model, copy.model)
                    if not _copy_weights(entry.weights, copy.weights, node):
                        logger.warning("the system does not allow choosing the weights' NUMA node")
                    copies[node] = copy.model
            except OSError as error:
                logger.warning("all NUMA nodes share one copy of the weights: %s", error)
                copies = {}
        yield copies


def _copy_weights(source: Path, target: Path, node: int) -> bool:
    with open(source, "rb") as weights, open(target, "w+b") as copy:
        return copy_to_node(weights.fileno(), copy.fileno(), node)
