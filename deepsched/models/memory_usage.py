"""The memory that an engine uses, as the kernel and ONNX Runtime count it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from deepsched.machine.sysfs import read_text
from deepsched.runtime.session import Session

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s*(.*)")


class Memory(NamedTuple):
    """Memory use of an engine, in bytes; returned by `Engine.memory`."""

    weights_shared: int
    """This process's share of the weights that all sessions map (PSS): each resident page counts
    divided by its number of mappings in all processes. 0 where the kernel has no
    /proc/self/smaps."""
    weights_private: int
    """Allocated by the sessions when they were opened: the weights, where each has its own."""
    activations: tuple[int, ...]
    """Allocated by each session since then, for the results of its operators: one for each stream,
    or one for all streams of one core."""
    process: int
    """Used by the whole process: PSS, or RSS where the kernel has no /proc/self/smaps."""

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


def memory_usage(
    sessions: Sequence[Session], at_opening: Sequence[int], inodes: Collection[int]
) -> Memory:
    """The memory of an engine now.

    Args:
        sessions: one for each stream.
        at_opening: `sizes_at_opening`.
        inodes: of the weights' files that they map.
    """
    now = _arena_sizes(sessions)
    weights, process = _mapped_bytes(inodes)
    return Memory(
        weights,
        sum(at_opening),
        tuple(size - before for size, before in zip(now, at_opening, strict=True)),
        process,
    )


def sizes_at_opening(sessions: Sequence[Session]) -> list[int]:
    """Bytes in ONNX Runtime's arena of each session, before its first run."""
    sizes = _arena_sizes(sessions)
    reserved = [session.reserved_bytes for session in dict.fromkeys(sessions)]  # for activations
    return [size - aside for size, aside in zip(sizes, reserved, strict=True)]


def _arena_sizes(sessions: Sequence[Session]) -> list[int]:
    """Bytes in ONNX Runtime's arena of each session."""
    return [session.arena_bytes() or 0 for session in dict.fromkeys(sessions)]


def _mapped_bytes(inodes: Collection[int]) -> tuple[int, int]:
    """PSS of the mappings of these files, and of the whole process.

    Not from smaps_rollup, which kernels before 4.14 and gVisor lack.
    """
    weights = process = 0
    is_ours = False
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
            for line in smaps:
                if header := _MAPPING.match(line):
                    # Not by the device: overlayfs shows another one here than in stat.
                    path = header[2].removesuffix(" (deleted)")
                    is_ours = int(header[1]) in inodes and path.endswith("/weights")
                elif line.startswith("Pss:"):
                    size = int(line.split()[1]) * 1024
                    process += size
                    weights += size * is_ours
    except OSError:  # a kernel without CONFIG_PROC_PAGE_MONITOR, or a process that must not
        return 0, _resident_bytes()
    return weights, process or _resident_bytes()


def _resident_bytes() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", read_text(Path("/proc/self/status")) or "", re.M)
    return int(found[1]) * 1024 if found else 0
