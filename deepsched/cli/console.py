"""The terminal, without markup."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """Prints text literally: model names and paths may hold brackets and colons.

    A closed output pipe (`| head -1`) raises BrokenPipeError, as `print` does; rich's own Console
    exits with 1.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Called by rich in its handler of BrokenPipeError."""
        raise BrokenPipeError
