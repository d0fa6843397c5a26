"""The command line: one module for each subcommand."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from deepsched.cli import advise, analyze, benchmark, cache, doctor, topology, trace
from deepsched.errors import DeepschedError
from deepsched.version import __version__


class _Parser(argparse.ArgumentParser):
    """Options are written out, so that a new one cannot change what a script means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


_Main = Callable[[Sequence[str] | None], int]


def _to_the_reader(main: _Main) -> _Main:
    """What is true of every subcommand's output: characters that its encoding lacks are "?"; when
    its reader leaves (`| head -1`), that is no error, and 141 is returned, as a shell says of
    `cat`."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        try:
            code = main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered goes nowhere, or Python would complain of it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        return code

    return wrapped


@_to_the_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand. Returns 0; 1 where `doctor` warns; 2 for arguments, a model or a machine
    that cannot be used; 130 for Ctrl-C; 141 if nobody reads its output to the end."""
    parser = argparse.ArgumentParser(
        prog="deepsched",
        description="Decides which CPU cores serve which inference request.",
    )
    parser.add_argument("--version", action="version", version=f"deepsched {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for command in (benchmark, advise, analyze, topology, doctor, trace, cache):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except DeepschedError as error:
        print(f"deepsched: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("deepsched: interrupted", file=sys.stderr)
        return 130
