"""Options that several subcommands share, each with one spelling."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from deepsched.errors import OptionError
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batching.option import OFF, BatchingOption
from deepsched.models.rewrites.option import REWRITES


def add_option(
    group: argparse._ActionsContainer, *flags: str, hidden: Sequence[str] = (), **options: Any
) -> None:
    """`group.add_argument`, with other spellings that work but that no help shows.

    Args:
        flags: those in the help. `--num-cores` is also taken as `--num_cores`.
        hidden: more spellings: DeepSparse's, and our own of earlier versions.
        options: see argparse.

    Example:
        >>> parser = argparse.ArgumentParser(prog="deepsched")
        >>> add_option(parser, "--num-cores", hidden=["-ncores"], type=int)
        >>> [parser.parse_args([flag, "2"]).num_cores for flag in ("-ncores", "--num_cores")]
        [2, 2]
        >>> print(parser.format_usage(), end="")
        usage: deepsched [-h] [--num-cores NUM_CORES]
    """
    action = group.add_argument(*flags, **options)
    underscored = ["--" + flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")]
    for spelling in (*underscored, *hidden):
        # Of the same action, which argparse offers no way to do: so errors and mutually exclusive
        # groups speak of the flag that the help shows.
        group._option_string_actions[spelling] = action


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL; ResNet-50 unless it is given."""
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL",
        help="path of an ONNX file (default: ResNet-50, which ships with the onnx wheel)",
    )


def add_sizes(group: argparse._ActionsContainer) -> None:
    """The size of a request: --batch-size and --input-shapes."""
    add_option(
        group,
        "-b",
        "--batch-size",
        type=_batch_size,
        default=AUTO,
        metavar="N",
        help="items in a request (default: 1 where the model leaves it open, else the model's)",
    )
    add_option(
        group,
        "-i",
        "--input-shapes",
        hidden=["-shapes", "--input_shape"],
        default="",
        metavar="SHAPES",
        help='shapes of the inputs, such as "[1,3,320,320]" or "[1,128],[1,128]"',
    )


def add_custom_ops(group: argparse._ActionsContainer) -> None:
    """--custom-ops."""
    add_option(
        group,
        "--custom-ops",
        action="append",
        default=[],
        metavar="FILE.so",
        help="a library of operators that the model needs; may be given several times",
    )


def add_rewrites(group: argparse._ActionsContainer) -> None:
    """--rewrites."""
    add_option(
        group,
        "--rewrites",
        choices=REWRITES,
        default="fast",
        help="how the graph may be changed into what onnxruntime runs faster: fast keeps float32's "
        "accuracy, exact every bit, none changes nothing (default fast)",
    )


def add_batching(group: argparse._ActionsContainer) -> None:
    """--batching."""
    add_option(
        group,
        "--batching",
        type=_batching,
        default="auto",
        metavar="auto|off|N",
        help="whether requests that wait run together: where it pays, never, or up to N items in a "
        "run (default auto)",
    )


def _batching(text: str) -> BatchingOption:
    for known in (AUTO, OFF):
        if text == known:
            return known
    with suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"expected auto, off or an integer, got {text!r}")


def _batch_size(text: str) -> BatchSize:
    if text == AUTO:
        return AUTO
    with suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}")


def add_num_cores(group: argparse._ActionsContainer) -> None:
    """--num-cores."""
    add_option(
        group,
        "--num-cores",
        hidden=["-ncores"],
        type=int,
        metavar="N",
        help="physical cores to use (default: all that this process may use)",
    )


def add_num_streams(group: argparse._ActionsContainer, meaning: str) -> None:
    """--num-streams."""
    add_option(group, "--num-streams", hidden=["-nstreams"], type=int, metavar="N", help=meaning)


def add_seconds(group: argparse._ActionsContainer, default: float, meaning: str) -> None:
    """--seconds."""
    add_option(
        group,
        "-t",
        "--seconds",
        hidden=["--time"],
        type=finite,
        default=default,
        metavar="S",
        help=f"{meaning} (default {default:g})",
    )


def add_load(group: argparse._ActionsContainer, callers: str) -> None:
    """--callers, and --rate with --poisson; `callers`: what it means."""
    group.add_argument("--callers", type=int, metavar="N", help=callers)
    group.add_argument(
        "--rate", type=finite, metavar="R", help="open loop: R requests per second, evenly spaced"
    )
    group.add_argument(
        "--poisson",
        action="store_true",
        help="random arrivals instead, as from independent users (a Poisson process)",
    )


def add_output(group: argparse._ActionsContainer, meaning: str) -> None:
    """--output."""
    add_option(
        group,
        "-o",
        "--output",
        hidden=["-x", "--export-path", "--export_path"],
        metavar="FILE.json",
        help=meaning,
    )


def finite(text: str) -> float:
    """A number, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: `text` is no number, or not a finite one.

    >>> finite("2.5")
    2.5
    """
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")


def streams_to_compare(num_cores: int | None) -> int:
    """The streams of multi_stream where it is compared with single_stream: one per L3 cache, its
    default, but at least two where there are two cores, so that the two differ."""
    topology = Topology.detect()
    return min(most_cores(topology, num_cores), max(2, len(topology.l3_groups)))


def parse_shapes(text: str) -> list[list[int]] | None:
    """The shapes that --input-shapes gives; None without it.

    Raises:
        OptionError: not a list of shapes.

    >>> parse_shapes("[1,128],[1,128]")
    [[1, 128], [1, 128]]
    """
    if not text:
        return None
    try:
        shapes = json.loads(f"[{text}]")
        if not all(isinstance(shape, list) for shape in shapes):
            raise ValueError("expected brackets around each shape")
    except (ValueError, RecursionError) as error:
        raise OptionError(
            '--input-shapes must look like "[1,3,320,320]" or "[1,128],[1,128]", got '
            f"{text!r:.200} ({error})"
        ) from None
    return list(shapes)
