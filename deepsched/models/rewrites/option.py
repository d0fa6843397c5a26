"""The option `rewrites`, and the memory that it may take. A module of its own: who only asks for
these need not load what tries rewrites."""

from __future__ import annotations

from deepsched.errors import OptionError

MOST_COPIED = 16 * 2**20
"""Bytes of weights that rules may have copied. A constant that is added is a part of the graph,
which is held several times while it is compiled, unlike large weights (models/large_weights.py);
and what ONNX Runtime folds itself it holds beside the original."""

REWRITES = ("fast", "exact", "none")


def check_rewrites(rewrites: str) -> str:
    """Returns it; raises OptionError."""
    if not isinstance(rewrites, str) or rewrites not in REWRITES:
        raise OptionError(f"rewrites must be 'fast', 'exact' or 'none', got {rewrites!r}")
    return rewrites
