"""The command line's parsers, by subcommand."""

from __future__ import annotations

import argparse

from deepsched.cli.program import build_parser


def parsers_in(parser):
    """Its subcommands' parsers, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


PARSERS = parsers_in(build_parser())
