"""A folder to write inputs to, in memory where there is one, gone with the process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared if shared.is_dir() else None)


def folder(name: str) -> Path:
    """One for this name."""
    path = Path(_made().name, name)
    path.mkdir(exist_ok=True)
    return path
