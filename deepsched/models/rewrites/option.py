"""The option `rewrites`. A module of its own, so that the command line need not load what tries
rewrites."""

from __future__ import annotations

from deepsched.errors import OptionError

REWRITES = ("fast", "exact", "none")


def check_rewrites(rewrites: str) -> str:
    """Returns it; raises OptionError."""
    if not isinstance(rewrites, str) or rewrites not in REWRITES:
        raise OptionError(f"rewrites must be 'fast', 'exact' or 'none', got {rewrites!r}")
    return rewrites
