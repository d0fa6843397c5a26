"""The terminal, without markup."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.text import Text

from deepsched.formatting import printable


class Console(rich.console.Console):
    """Prints text literally: model names and paths may hold brackets and colons, and what a
    terminal would obey, which is escaped.

    A closed output pipe (`| head -1`) raises BrokenPipeError, as `print` does; rich's own Console
    exits with 1.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for each string, also for those in tables; not for a Text."""
        return super().render_str(printable(text, keep="\n"), **options)

    def on_broken_pipe(self) -> None:
        """Called by rich in its handler of BrokenPipeError."""
        raise BrokenPipeError


@contextmanager
def only_errors(is_quiet: bool) -> Iterator[None]:
    """Silences the library's warnings meanwhile, if `is_quiet`."""
    logger = logging.getLogger("deepsched")
    level = logger.level
    if is_quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
