"""How much memory NUMA nodes have left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from deepsched.machine.sysfs import read_text

_RESERVE = 16
"""The kernel keeps some of each node for itself: one part of this many is taken to be its own."""


def node_memory_left(root: Path, nodes: Iterable[int]) -> int | None:
    """Bytes that these NUMA nodes can still hold; None if the kernel does not tell.

    What files keep in memory is left, too: the kernel takes it back.
    """
    left = 0
    for node in nodes:
        text = read_text(root / f"sys/devices/system/node/node{node}/meminfo") or ""
        kb = {name: int(count) for name, count in re.findall(r"(\S+): +([0-9]+) kB", text)}
        if not {"MemTotal", "MemFree"} <= kb.keys():
            return None
        files = sum(kb.get(name, 0) for name in ("Active(file)", "Inactive(file)", "SReclaimable"))
        left += max(0, kb["MemFree"] + files - kb["MemTotal"] // _RESERVE) * 1024
    return left
