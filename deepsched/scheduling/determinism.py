"""The same input, the same bits: a warning where that may not hold, and sessions of one width."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deepsched.errors import OptionError
from deepsched.scheduling.layout import Layout

if TYPE_CHECKING:
    from deepsched.machine.partition import Stream
    from deepsched.models.compiled import OpenedModel

logger = logging.getLogger("deepsched")

OpenGroups = Callable[["list[Stream]", Mapping[str, object]], "OpenedModel"]
"""Opens a session for each core group; with what else decides how the model is compiled."""


def open_with_one_width(open_groups: OpenGroups, layout: Layout) -> OpenedModel:
    """Opens sessions that all have as many threads as the narrowest stream has cores, or one where
    several make the model's bits vary from run to run.

    Raises:
        OptionError: the model draws random numbers.
        What `open_groups` raises.
    """
    width = layout.narrowest
    while True:
        # Folding constants is computing, too.
        opened = open_groups(layout.groups_of(width), {"width": width})
        if opened.varying.random:
            opened.close()
            raise OptionError(
                f"deterministic=True, but the model draws random numbers "
                f"({', '.join(opened.varying.random)})"
            )
        if width == 1 or not opened.varying.by_run:
            return opened._replace(width=width)
        opened.close()
        width = 1


def warn_of_varying_bits(opened: OpenedModel, layout: Layout) -> None:
    """Logs, once in a process for each model, that the load may decide on the last bits."""
    widths = {len(group.cpus) for group in layout.groups}
    names = set(opened.varying.by_width if len(widths) > 1 else ())
    names.update(opened.varying.by_run if max(widths) > 1 else ())
    if names:
        _warn(opened.path or "the model", ", ".join(sorted(names)))


@functools.cache
def _warn(model: str, operators: str) -> None:
    logger.warning(
        "%s: the same input may give other last bits from request to request, since requests run "
        "on different numbers of cores, and %s of onnxruntime may depend on that; "
        "deterministic=True keeps them to one",
        model,
        operators,
    )
