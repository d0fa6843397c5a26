"""Copies of a compiled model's weights, each in the memory of the NUMA nodes that read it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepsched.errors import OptionError
from deepsched.machine.node_memory import node_memory_left
from deepsched.machine.partition import Stream
from deepsched.models.entry import Entry
from deepsched.models.locations import SHARED_MEMORY, stage_in
from deepsched.runtime.numa import copy_to_nodes

logger = logging.getLogger("deepsched")


def nodes_of(stream: Stream) -> tuple[int, ...]:
    """The NUMA nodes whose cores read a stream's weights. Empty if the machine does not report it.

    >>> from deepsched import Topology, partition
    >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
    >>> [nodes_of(stream) for stream in partition(machine, num_streams=3)[0]]
    [(0,), (0, 1), (1,)]
    """
    return tuple(sorted(node for node in stream.numa_nodes if node is not None))


@contextlib.contextmanager
def numa_copies(entry: Entry, streams: Sequence[Stream]) -> Iterator[dict[tuple[int, ...], Path]]:
    """The model file to open, by `nodes_of` a stream: a copy for each of these sets of nodes.

    The entry itself where all streams are in one node, or DEEPSCHED_NUMA_COPIES=0 forbids copies.
    Where they do not all fit, those of single nodes come first: more requests run there. What spans
    nodes then shares that of its first node, and what has none shares the entry.

    At the block's end the copies lose their names: sessions that have them mapped keep them.

    Raises:
        OptionError: DEEPSCHED_NUMA_COPIES is neither 0 nor 1.
    """
    readers = sorted(
        {nodes_of(stream) for stream in streams}, key=lambda nodes: (len(nodes), nodes)
    )
    spans_nodes = len({node for nodes in readers for node in nodes}) > 1
    models: dict[tuple[int, ...], Path] = {}
    with contextlib.ExitStack() as stack:
        if _are_allowed() and spans_nodes and entry.weights.exists():
            for nodes in filter(None, readers):
                try:
                    models[nodes] = _copy(entry, nodes, stack)
                except OSError as error:
                    logger.warning("NUMA nodes %s have no copy of the weights: %s", nodes, error)
        yield {
            nodes: models.get(nodes) or models.get(nodes[:1]) or entry.model for nodes in readers
        }


def _copy(entry: Entry, nodes: tuple[int, ...], stack: contextlib.ExitStack) -> Path:
    """A copy in the memory of `nodes`. Raises OSError if it does not fit."""
    # The kernel kills a process that a node has no room for, as if the machine had none.
    size, left = entry.weights.stat().st_size, node_memory_left(Path("/"), nodes)
    if left is not None and left < size:
        raise OSError(errno.ENOMEM, f"{size} bytes do not fit, {left} are left there")
    with contextlib.ExitStack() as unless_complete:
        copy = unless_complete.enter_context(stage_in(SHARED_MEMORY, in_memory=True))
        shutil.copyfile(entry.model, copy.model)
        with open(entry.weights, "rb") as weights, open(copy.weights, "w+b") as target:
            if not copy_to_nodes(weights.fileno(), target.fileno(), nodes):
                logger.warning(
                    "the system does not let processes choose NUMA nodes: "
                    "the weights for %s lie on any",
                    nodes,
                )
        stack.enter_context(unless_complete.pop_all())
    return copy.model


def _are_allowed() -> bool:
    text = os.environ.get("DEEPSCHED_NUMA_COPIES") or "1"
    if text not in ("0", "1"):
        raise OptionError(
            f"DEEPSCHED_NUMA_COPIES must be 0 (all NUMA nodes share one copy of the weights) or 1, "
            f"got {text!r}"
        )
    return text == "1"
