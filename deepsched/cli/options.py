"""Options that several subcommands have."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from deepsched.errors import OptionError


@contextmanager
def output(args: argparse.Namespace, option: str) -> Iterator[TextIO | None]:
    """Opens the file that `option` names, if it was given. Before anything is measured: a path that
    cannot be written is known at once.

    Raises:
        OptionError: it cannot be written.
    """
    path = getattr(args, option)
    if not path:
        yield None
        return
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise OptionError(f"cannot write --{option} {path!r}: {error}") from error
    with file:
        yield file


def parse_shapes(text: str) -> list[list[int]] | None:
    """What --input_shapes means; None if it was not given.

    Raises:
        OptionError: it is not a list of shapes.

    >>> parse_shapes("[1,128],[1,128]")
    [[1, 128], [1, 128]]
    """
    if not text:
        return None
    try:
        shapes = json.loads(f"[{text}]")
        if not all(isinstance(shape, list) for shape in shapes):
            raise ValueError("expected brackets around each shape")
    except ValueError as error:
        raise OptionError(
            f'--input_shapes must look like "[1,3,320,320]" or "[1,128],[1,128]", got {text!r} '
            f"({error})"
        ) from None
    return list(shapes)
