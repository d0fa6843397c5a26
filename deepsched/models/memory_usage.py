"""What an engine's memory goes into, as the kernel and ONNX Runtime count it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from deepsched.runtime.session import Session

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s*(.*)")


class Memory(NamedTuple):
    """Bytes; what `Engine.memory` returns."""

    weights_shared: int
    """Of the weights that all sessions map, this process's part: pages in use, each divided by the
    number of mappings of it in all processes (PSS)."""
    weights_private: int
    """What sessions took when they were opened: weights, where each has its own."""
    activations: tuple[int, ...]
    """What each session has taken since, for the results of its operators: one for each stream, or
    one for all streams of one core."""
    process: int
    """The whole process (PSS)."""

    def __str__(self) -> str:
        """In MB, for people.

        >>> print(Memory(5_000_000, 0, (17_000_000, 1_000_000), 90_000_000))
        weights 5.0 MB shared, 0.0 MB private; activations 18.0 MB in 2 sessions; process 90.0 MB
        """
        count = len(self.activations)
        return (
            f"weights {self.weights_shared / 1e6:.1f} MB shared, {self.weights_private / 1e6:.1f} "
            f"MB private; activations {sum(self.activations) / 1e6:.1f} MB in {count} "
            f"session{'s' * (count != 1)}; process {self.process / 1e6:.1f} MB"
        )


def measure(
    sessions: Sequence[Session], at_opening: Sequence[int], inodes: Collection[int]
) -> Memory:
    """`at_opening`: what the arena of each of the sessions had taken then."""
    now = arenas(sessions)
    return Memory(
        _mapped_bytes(inodes),
        sum(at_opening),
        tuple(size - before for size, before in zip(now, at_opening, strict=True)),
        _process_bytes(),
    )


def arenas(sessions: Sequence[Session]) -> list[int]:
    """What ONNX Runtime took from the system for each session; 0s before its version 1.23."""
    return [session.arena_bytes() or 0 for session in dict.fromkeys(sessions)]


def _mapped_bytes(inodes: Collection[int]) -> int:
    total = 0
    is_ours = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            if header := _MAPPING.match(line):
                # Not by the device: overlayfs shows another one here than in stat.
                path = header[2].removesuffix(" (deleted)")
                is_ours = int(header[1]) in inodes and path.endswith("/weights")
            elif is_ours and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _process_bytes() -> int:
    found = re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0
