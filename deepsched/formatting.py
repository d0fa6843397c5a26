"""Numbers formatted for display."""

from __future__ import annotations


def rounded(number: float) -> str:
    """A number rounded for display: two decimals, or two significant digits below 1.

    >>> rounded(12.345), rounded(0.0012345)
    ('12.35', '0.0012')
    """
    return f"{number:.2f}" if number >= 1 else f"{number:.2g}"
