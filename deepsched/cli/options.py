"""Options that several subcommands have."""

from __future__ import annotations

import argparse
import json
import math
from contextlib import suppress
from typing import Any

from deepsched.errors import OptionError
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL; ResNet-50 unless it is given."""
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL",
        help="path of an ONNX file (default: ResNet-50 from the onnx wheel)",
    )


def add_sizes(group: Any) -> None:
    """What a request is: --batch_size and --input_shapes."""
    group.add_argument("-b", "--batch_size", type=int, default=1, help="items in a request")
    group.add_argument(
        "-i",
        "-shapes",
        "--input_shapes",
        default="",
        metavar="SHAPES",
        help='shapes of the inputs, such as "[1,3,320,320]" or "[1,128],[1,128]"',
    )


def finite(text: str) -> float:
    """The type of options that are numbers.

    Raises:
        argparse.ArgumentTypeError: it is not one; "nan" and "inf" are not.

    >>> finite("2.5")
    2.5
    """
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")


def streams_to_compare(num_cores: int | None) -> int:
    """What multi_stream gets beside single_stream: one per L3 cache, as it would by itself, but
    two at least where there are two cores, or the two would be the same."""
    topology = Topology.detect()
    return min(most_cores(topology, num_cores), max(2, len(topology.l3_groups)))


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
