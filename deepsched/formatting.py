"""Numbers as people read them."""

from __future__ import annotations


def short(number: float) -> str:
    """With as many digits as tell something.

    >>> short(12.345), short(0.0012345)
    ('12.35', '0.0012')
    """
    return f"{number:.2f}" if number >= 1 else f"{number:.2g}"
