"""The command line: one module for each subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deepsched.cli import advise, analyze, benchmark, cache, doctor, topology, trace
from deepsched.errors import DeepschedError
from deepsched.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand. Returns 0; 1 where `doctor` warns; 2 for arguments, a model or a machine
    that cannot be used; 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="deepsched",
        description="Decides which CPU cores serve which inference request.",
    )
    parser.add_argument("--version", action="version", version=f"deepsched {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (benchmark, advise, analyze, topology, doctor, trace, cache):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except DeepschedError as error:
        print(f"deepsched: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
