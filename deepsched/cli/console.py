"""How the command line writes to the terminal."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """Prints what it is given: brackets and colons in a model's name, or in a path, are no markup.

    A reader that leaves (`| head -1`) is a BrokenPipeError, as `print` raises; rich's own Console
    exits with 1.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """See rich; called where BrokenPipeError is caught."""
        raise BrokenPipeError
