"""The command line: one module for each subcommand.

This module imports nothing that takes time: until `main` runs, Ctrl-C is a traceback.
"""

from __future__ import annotations

import signal
import sys

from deepsched.cli.interrupts import exits_on_ctrl_c, let_ctrl_c_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand: of `argv`, or of this process's own arguments.

    Returns:
        0; 1 if `doctor` warns or stdout cannot be written; 2 for invalid arguments, or a model or
        machine that cannot be used; 130 for Ctrl-C; 141 if the output pipe closed early. While it
        imports, and once it has ended, Ctrl-C kills the process.
    """
    try:
        try:
            with exits_on_ctrl_c():
                from deepsched.cli import program
            return program.run(argv)
        finally:
            if argv is None:  # what is left is Python's shutdown, which would print a traceback
                let_ctrl_c_exit()
    except KeyboardInterrupt:
        print("deepsched: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
