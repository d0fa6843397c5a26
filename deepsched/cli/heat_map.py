"""Core-to-core latencies as a heat map, on the terminal and as a piece of an SVG picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from deepsched.cli.palette import heat_of
from deepsched.cli.svg import Piece, centred, stack, text_at, text_block
from deepsched.formatting import xml_text
from deepsched.lazy import cached_property
from deepsched.machine.latency import Matrix
from deepsched.machine.probe import Look
from deepsched.machine.sysfs import format_cpu_list

_CELL = 6
"""Characters of a field with its figure."""
_SHADES = " ░▒▓█"

_MOST_PIXELS = 1080
_LARGEST_FIELD = 34
_LEAST_FIELD_WITH_FIGURE = 24
_LABEL = 56


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Figures between rows and columns that bear the same labels."""

    labels: tuple[str, ...]
    figures: Matrix
    """ns; NaN where there is none."""

    @cached_property
    def shares(self) -> Matrix:
        """How high each figure is, from 0 to 1 between the lowest and the highest, by ratio."""
        if np.isnan(self.figures).all():
            return self.figures
        low, high = np.nanmin(self.figures), np.nanmax(self.figures)
        if low == high:
            return self.figures * 0.0
        return np.asarray(np.log(self.figures / low) / np.log(high / low))

    def share(self, row: int, column: int) -> float | None:
        """That of one figure; None where there is none."""
        share = float(self.shares[row, column])
        return None if math.isnan(share) else share


def by_core(look: Look) -> HeatMap:
    """A row for each core."""
    return HeatMap(tuple(str(cpu) for cpu in look.cpus), look.round_trips_ns)


def by_group(look: Look) -> HeatMap:
    """A row for each group that shares a cache, with the medians of the measured pairs."""
    figures = np.full((len(look.sharing), len(look.sharing)), np.nan)
    for row, group in enumerate(look.sharing):
        for column, other in enumerate(look.sharing):
            pairs = look.round_trips_ns[np.ix_(group, other)]
            if not np.isnan(pairs).all():
                figures[row, column] = np.nanmedian(pairs)
    labels = (format_cpu_list(look.cpus[place] for place in group) for group in look.sharing)
    return HeatMap(tuple(labels), figures)


def draw_lines(look: Look, width: int) -> Iterator[Text]:
    """Lines of at most `width` characters: each core with its figures; or, of more cores than fit,
    each group; or, of more groups than fit, shades.

    Example:
        >>> trips = np.array([[np.nan, 112.0], [112.0, np.nan]])
        >>> look = Look((0, 1), trips, 130.0, ((0, 1),), (), "")
        >>> print(*draw_lines(look, 80), sep="\\n")
        CPU     0     1
        0       –   112
        1     112     –
    """
    for draw, num, title in (
        (by_core, len(look.cpus), "CPU"),
        (by_group, len(look.sharing), "CPUs"),
    ):
        if 0 < _CELL * num < width:
            drawn = draw(look)
            label = max(len(title), *(len(text) for text in drawn.labels))
            if label + _CELL * num <= width:
                yield from _with_figures(drawn, title, label)
                return
    drawn = by_core(look)
    label = max(len(text) for text in drawn.labels)
    for row, text in enumerate(drawn.labels):
        line = Text(text.ljust(label + 1))
        shares = [drawn.share(row, column) for column in range(len(drawn.labels))]
        fields = ((_shade(share), _style(share)) for share in shares[: width - label - 1])
        for (shade, style), alike in itertools.groupby(fields):
            line.append(shade * len(list(alike)), style)
        yield line


def _shade(share: float | None) -> str:
    return " " if share is None else _SHADES[round(share * (len(_SHADES) - 1))]


def _with_figures(drawn: HeatMap, title: str, label: int) -> Iterator[Text]:
    heads = (_shortened(text).rjust(_CELL) for text in drawn.labels)
    yield Text(title.ljust(label) + "".join(heads), "dim")
    for row, text in enumerate(drawn.labels):
        line = Text(text.ljust(label))
        for column in range(len(drawn.labels)):
            share = drawn.share(row, column)
            figure = "–" if share is None else f"{drawn.figures[row, column]:.0f}"
            line.append(figure.rjust(_CELL - 1).rjust(_CELL), _style(share))
        yield line


def _shortened(label: str) -> str:
    """A group's column has room for its first CPU alone; its row has them all."""
    return label if len(label) < _CELL else f"{label.split('-')[0].split(',')[0]}.."


def _style(share: float | None) -> str:
    if share is None:
        return "dim"
    fill, ink = heat_of(share)
    return f"{ink} on {fill}"


def draw_piece(look: Look) -> Piece:
    """A square of one field for each pair of cores, each with its figure as a tooltip, and inside
    where it fits."""
    drawn = by_core(look)
    num = len(drawn.labels)
    size = min(_LARGEST_FIELD, (_MOST_PIXELS - _LABEL) / num)
    has_figures = size >= _LEAST_FIELD_WITH_FIGURE
    fields = []
    for row, one in enumerate(drawn.labels):
        if has_figures:
            fields.append(text_at(0, 18 + (row + 0.65) * size, one))
            fields.append(centred(_LABEL + (row + 0.5) * size, 12, one, 11, "#222222"))
        for column, other in enumerate(drawn.labels):
            fields.append(
                _field(drawn, row, column, f"CPU {one} to CPU {other}", size, has_figures)
            )
    square = Piece(_LABEL + num * size, 18 + num * size, "".join(fields))
    title = "Round trips of a cache line between two cores, ns"
    return stack([text_block([title], weight="bold"), square])


def _field(drawn: HeatMap, row: int, column: int, pair: str, size: float, has_figures: bool) -> str:
    share = drawn.share(row, column)
    x, y = _LABEL + column * size, 18 + row * size
    if share is None:
        said = "" if row == column else f"<title>{xml_text(pair)}: not measured</title>"
        return (
            f'<g>{said}<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" '
            'fill="#ffffff" stroke="#cccccc"/></g>'
        )
    fill, ink = heat_of(share)
    figure = f"{drawn.figures[row, column]:.0f}"
    text = centred(x + size / 2, y + size * 0.65, figure, 11, ink) if has_figures else ""
    return (
        f"<g><title>{xml_text(pair)}: {figure} ns</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" fill="{fill}"/>{text}</g>'
    )
