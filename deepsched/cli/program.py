"""The parser of all subcommands, and how each of them ends."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any

from deepsched.cli.help import HelpFormatter
from deepsched.cli.interrupts import exits_on_ctrl_c
from deepsched.errors import DeepschedError
from deepsched.formatting import printable
from deepsched.version import __version__

COMMANDS = {
    "serve": "serve models over HTTP and gRPC",
    "benchmark": "measure throughput and latency of a model",
    "advise": "find the scheduler, streams and cores that serve a model best here",
    "analyze": "show which operators a model's time goes into, and which stop scaling",
    "topology": "show the machine and the streams it would make",
    "doctor": "find what slows inference down on this machine, and what to do",
    "trace": "draw which cores serve which request, from a measurement",
    "lease": "list which processes have which cores",
    "cache": "list or clear the compiled models on disk",
    "report": "print what a bug report needs, as JSON",
}
"""Each subcommand, a module of its own with `configure(parser)`; and what it does."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Parser(argparse.ArgumentParser):
    """Options are written out, so that a new one cannot change what a script means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses what it does not know here, with this subcommand's usage; argparse leaves it to
        the parser above, whose usage has no options."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._nearest(unknown)}")
        return parsed, unknown

    def _nearest(self, unknown: Sequence[str]) -> str:
        flags = {
            spelling: action.option_strings[-1]
            for spelling, action in self._option_string_actions.items()
            if action.help != argparse.SUPPRESS and spelling.startswith("--")
        }
        for argument in unknown:
            if argument.startswith("-"):
                found = difflib.get_close_matches(argument.partition("=")[0], flags, n=1)
                if found:
                    return f" (did you mean {flags[found[0]]}?)"
        return ""


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def build_parser(commands: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser, with the options of `commands`; the others are only listed, and not imported."""
    parser = argparse.ArgumentParser(
        prog="deepsched",
        description="Decides which CPU cores serve which inference request.",
    )
    parser.add_argument("--version", action="version", version=f"deepsched {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        subparser.set_defaults(parser=subparser)
        if name in commands:
            import_module(f"deepsched.cli.{name}").configure(subparser)
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Runs a subcommand; see `deepsched.cli.main` for what it returns.

    In its output characters that the encoding lacks are "?".
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if logging.lastResort is not None:  # what prints warnings where logging is not set up
        logging.lastResort.setFormatter(_PrintableFormatter())
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 141  # as a shell says of `cat`, which SIGPIPE kills
    except OSError as error:
        # Files that a subcommand writes have names, in cli/files.py and here.
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        _discard_output()
        print(f"deepsched: cannot write to stdout: {error.strerror}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> int:
    with exits_on_ctrl_c():
        command = next((argument for argument in argv if not argument.startswith("-")), "")
        args = build_parser([command]).parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except DeepschedError as error:
        message = printable(_with_flag(str(error), args.parser), keep="\n")
        print(f"deepsched: {message}", file=sys.stderr)
        return 2


_DESTS = {"p99_limit_ms": "p99_limit"}
"""Arguments of the API whose options have other names."""


def _with_flag(message: str, parser: argparse.ArgumentParser) -> str:
    """`num_streams must be ..., or None, got ...`, from below the command line, is about
    --num-streams, where nobody can write None."""
    name, space, rest = message.partition(" ")
    for action in parser._actions:
        if action.dest == _DESTS.get(name, name) and action.option_strings:
            rest = re.sub(r", or None\b.*(?=, got )", "", rest)
            return f"{action.option_strings[-1]}{space}{rest}"
    return message


def _discard_output() -> None:
    """What is still buffered goes nowhere, or Python would complain about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
