"""A plot of a sweep: throughput and latency over its first axis."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepsched.benchmark.percentiles import requests_for
from deepsched.benchmark.sweep import Point, Sweep
from deepsched.errors import OptionError

_FORMATS = ("pdf", "png", "svg")


def check_plot(path: str) -> None:
    """Checks that a plot can be written to `path`, before anything is measured.

    Raises:
        OptionError: matplotlib is not installed, the suffix is not that of a known format, or the
            file is not writable.
    """
    if find_spec("matplotlib") is None:
        raise OptionError(
            "a plot needs matplotlib, which is not installed: pip install 'deepsched[plot]'"
        )
    if Path(path).suffix.lstrip(".") not in _FORMATS:
        raise OptionError(f"a plot's file must end in .{', .'.join(_FORMATS)}, got {path!r}")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise OptionError(f"cannot write a plot to {path!r}: no such folder")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise OptionError(f"cannot write a plot to {path!r}: not allowed to")


def plot_sweep(sweep: Sweep, path: str) -> None:
    """Plots throughput, and p50 and p99 of latency, over the first axis: a line for each
    combination of the others.

    Raises:
        OptionError: see check_plot, or the file could not be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure  # not pyplot, which has global state and opens windows

    axis, *others = sweep.axes
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for number, (name, points) in enumerate(_lines(sweep, others).items()):
        x = [point.values[axis] for point in points]
        measured: list[Any] = [point.measurement for point in points]
        colour = f"C{number}"
        rates.plot(x, [m.items_per_sec for m in measured], "o-", color=colour, label=name)
        p50, p99 = ([m.percentile(p) for m in measured] for p in (50, 99))
        fewest = min(m.num_arrived for m in measured)
        few = f" (of {fewest} requests)" if fewest < requests_for(99) else ""
        latencies.plot(x, p50, "o-", color=colour, label=f"{name} p50".strip())
        latencies.plot(x, p99, "o:", color=colour, label=f"{name} p99{few}".strip())
    for axes, label in ((rates, "items/sec"), (latencies, "latency of a request (ms)")):
        axes.set_xlabel(axis)
        axes.set_xticks(sorted(set(sweep.axes[axis])))
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        if axes is latencies or others:
            axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise OptionError(f"cannot write a plot to {path!r}: {error}") from error


def _lines(sweep: Sweep, others: list[str]) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for point in sweep.points:
        if point.measurement is not None:
            name = ", ".join(f"{axis}={point.values[axis]}" for axis in others)
            lines.setdefault(name, []).append(point)
    return lines
