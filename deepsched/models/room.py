"""Whether there is memory to compile a model."""

from __future__ import annotations

from pathlib import Path

from deepsched.machine.cgroup import memory_left
from deepsched.models.prepare import PreparedModel
from deepsched.models.rewrites.option import MOST_COPIED

_BESIDE_WEIGHTS = 40 * 2**20
"""The graph, ONNX Runtime's own, and what glibc keeps."""

_COPIES_OF_GRAPH = 4
"""What is in the graph, such as weights of branches, is parsed and serialized, and parsed again."""

_REWRITING = 6 * MOST_COPIED
"""What trying rules may take: measured, with what ONNX Runtime takes to open what they add."""


def shortage(prepared: PreparedModel, in_memory: bool, is_rewritten: bool = False) -> str:
    """Why it should not be compiled; empty if there is room.

    Args:
        in_memory: its files are, too.
        is_rewritten: rules are tried, and may fold factors into weights.

    Compiling takes as much as opening the model and, as ONNX Runtime saves one initializer after
    the other, a copy of the largest. Where there is room for the one, but not for the other, every
    start would be killed, and the next could not profit from it.
    """
    needed = prepared.weights_bytes + prepared.largest_bytes * 6 // 5 + _BESIDE_WEIGHTS
    needed += _COPIES_OF_GRAPH * len(prepared.graph)
    if in_memory:
        needed += 3 * prepared.weights_bytes  # as they are given, as they are saved, and packed
    if is_rewritten:
        needed += min(_REWRITING, 6 * prepared.weights_bytes)
    left = memory_left(Path("/"))
    if left is None or needed <= left:
        return ""
    return f"that takes about {needed / 1e6:.0f} MB, and {left / 1e6:.0f} MB are left"
