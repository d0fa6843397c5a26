"""How runs get shorter with more cores: which widths to look at, which of them help, and what an
elastic context's models were measured to take, kept beside their cache entry."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from deepsched.scheduling.group_tree import GroupTree

# A wider group that saves less than this of the time is not used: its cores serve others better.
_LEAST_GAIN = 0.05

_SECONDS = 0.05
"""For each width, beside a run or two."""


def widths(most: int) -> list[int]:
    """The numbers of cores to look at: powers of two, and all there are.

    >>> widths(6)
    [1, 2, 4, 6]
    """
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def useful_cores(times: Mapping[int, float]) -> int:
    """Number of cores beyond which a run gains too little. `times`: run length by cores.

    >>> useful_cores({1: 10.0, 2: 6.0, 4: 5.9, 8: 5.8})
    2
    """
    best = min(times.values())
    return next(cores for cores in sorted(times) if times[cores] <= best / (1 - _LEAST_GAIN))


def run_lengths(
    tree: GroupTree, measure: Callable[[int, float], int], folder: str | None, layout: str
) -> list[int]:
    """For each group of the tree how long a run takes there, ns; 0 if it is wider than helps.

    Args:
        measure: measures a group for about so many seconds, and returns ns.
        folder: where to keep the result; None for nowhere.
        layout: says what the result depends on beside the model.
    """
    path = Path(folder, "speed.json") if folder is not None else None
    by_width = _read(path, layout)
    if by_width is None:
        by_width = {}
        for group in range(len(tree.leaves)):
            by_width.setdefault(tree.num_cores(group), 0)
            if by_width[tree.num_cores(group)] == 0:
                by_width[tree.num_cores(group)] = measure(group, _SECONDS)
        _write(path, layout, by_width)
    return useful(tree, by_width)


def useful(tree: GroupTree, by_width: dict[int, int]) -> list[int]:
    """`by_width` by group, 0 for those that gain too little over the groups that they consist of,
    and all that contain such a one.

    >>> from deepsched import Topology, partition
    >>> from deepsched.scheduling.group_tree import tree_of
    >>> tree = tree_of(partition(Topology.synthetic(1, 1, 1, 4), num_streams=4).streams)
    >>> useful(tree, {1: 100, 2: 60, 4: 58})
    [100, 100, 100, 100, 60, 60, 0]
    """
    lengths = [by_width[tree.num_cores(group)] for group in range(len(tree.leaves))]
    for group, parent in enumerate(tree.parents):  # narrower groups come first
        if parent >= 0 and (
            lengths[group] == 0 or lengths[parent] > (1 - _LEAST_GAIN) * lengths[group]
        ):
            lengths[parent] = 0
    return lengths


def _read(path: Path | None, layout: str) -> dict[int, int] | None:
    try:
        if path is None:
            return None
        kept = json.loads(path.read_text("utf-8"))
        found = {int(width): int(ns) for width, ns in kept[layout].items()}
        return found if found and min(found.values()) > 0 else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _write(path: Path | None, layout: str, by_width: dict[int, int]) -> None:
    """Beside what other layouts of the machine have left there."""
    if path is None:
        return
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        kept = {}
    if not isinstance(kept, dict) or len(kept) > 100:
        kept = {}
    kept[layout] = by_width
    with contextlib.suppress(OSError):  # then it is measured anew
        fd, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(name, path)
