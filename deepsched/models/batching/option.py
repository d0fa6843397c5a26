"""The option `batching`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deepsched.checks import check_integer

AUTO: Literal["auto"] = "auto"
OFF: Literal["off"] = "off"

MOST_ITEMS = 256
"""In a run: as in runtime/batch_plan.pxd."""

BatchingOption: TypeAlias = int | Literal["auto", "off"]
"""Whether requests that wait run together: where it pays, never, or up to so many items."""


def check_batching(batching: BatchingOption) -> BatchingOption:
    """Returns it, a number as a plain int; raises OptionError.

    Example:
        >>> check_batching(1)
        Traceback (most recent call last):
        ...
        deepsched.errors.OptionError: batching must be an integer between 2 and 256 (items in a \
run), or 'auto' or 'off', got 1
    """
    if isinstance(batching, str) and batching in (AUTO, OFF):
        return batching
    return check_integer(
        "batching", batching, 2, MOST_ITEMS, unit="items in a run", otherwise="'auto' or 'off'"
    )
