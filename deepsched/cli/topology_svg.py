"""A picture of the machine as an SVG file, self-contained, for light and dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepsched.cli.palette import fill_of, ink_of
from deepsched.formatting import xml_text
from deepsched.machine.diagram import FORBIDDEN, OFFLINE, UNUSED, Box, Cell, Diagram

# Pixels.
_WIDTH = 1080
"""The limit for boxes and text; only the row of a single box may exceed it."""
_LEAF_WIDTH = 508
"""Room for eight cores with two hardware threads each."""
_MARGIN = 24
_PADDING = 8
_GAP = 10
_CELL_GAP = 4
_THREAD_WIDTH = 30
_CELL_HEIGHT = 34
_KIND_HEIGHT = 13
_LINE = 18
_LETTER = 6.6
"""The average width of a letter at 12 px."""
_BOLD = 1.2
"""The factor for bold letters."""


def draw_svg(diagram: Diagram) -> str:
    """Returns the text of an SVG file: boxes, a tooltip per core, a legend, and the warnings.

    Example:
        >>> from deepsched import Topology, partition
        >>> from deepsched.machine.diagram import build_diagram
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=4)
        >>> draw_svg(build_diagram(machine, partition(machine)))[:46]
        '<svg xmlns="http://www.w3.org/2000/svg" width='
    """
    has_kinds = diagram.has_kinds  # looks at every core
    body = _stack(
        [
            _text_block([diagram.title], size=18, weight="bold"),
            _flow([_box(box, has_kinds) for box in diagram.boxes], _WIDTH),
            _legend(diagram),
            *(_warning(title, text) for title, text in diagram.warnings),
        ]
    )
    width, height = body.width + 2 * _MARGIN, body.height + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="DejaVu Sans, Verdana, sans-serif" '
        f'font-size="12" fill="#222222">\n<title>{xml_text(diagram.title)}</title>\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f"{_at(_MARGIN, _MARGIN, body)}\n</svg>\n"
    )


# --- Pieces and how they are put together -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """Something drawn from its own origin."""

    width: float
    height: float
    markup: str


def _at(x: float, y: float, piece: _Piece) -> str:
    return f'<g transform="translate({x:g} {y:g})">{piece.markup}</g>'


def _stack(pieces: Iterable[_Piece], gap: float = _GAP) -> _Piece:
    """One below the other."""
    width = y = 0.0
    markup = []
    for piece in pieces:
        markup.append(_at(0, y, piece))
        width = max(width, piece.width)
        y += piece.height + gap
    return _Piece(width, y - gap, "\n".join(markup))


def _flow(pieces: Sequence[_Piece], most_width: float, gap: float = _GAP) -> _Piece:
    """Side by side, in as many rows as `most_width` asks for."""
    x = y = width = row_height = 0.0
    markup = []
    for piece in pieces:
        if x > 0 and x + piece.width > most_width:
            x, y, row_height = 0.0, y + row_height + gap, 0.0
        markup.append(_at(x, y, piece))
        x += piece.width + gap
        width, row_height = max(width, x - gap), max(row_height, piece.height)
    return _Piece(width, y + row_height, "\n".join(markup))


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{xml_text(text)}</text>'


def _centred(x: float, y: float, text: str, size: int, colour: str) -> str:
    return _text(x, y, text, f'font-size="{size}" text-anchor="middle" fill="{colour}"')


def _text_block(lines: Sequence[str], size: float = 12, weight: str = "normal") -> _Piece:
    height = size * 1.5
    style = f'font-size="{size:g}" font-weight="{weight}"'
    markup = (_text(0, index * height + size, line, style) for index, line in enumerate(lines))
    letter = _LETTER * (_BOLD if weight == "bold" else 1) * size / 12
    width = max(len(line) for line in lines) * letter
    return _Piece(width, height * len(lines), "".join(markup))


# --- What is in the picture -------------------------------------------------------------------


def _box(box: Box, has_kinds: bool) -> _Piece:
    if box.boxes:
        inner = _flow([_box(each, has_kinds) for each in box.boxes], _WIDTH - 2 * _PADDING)
    else:
        cells = [_cell(cell, box.title, has_kinds) for cell in box.cells]
        inner = _flow(cells, _LEAF_WIDTH, _CELL_GAP)
    top = _PADDING + (_LINE if box.title else 0)
    width = max(inner.width, len(box.title) * _LETTER) + 2 * _PADDING
    height = top + inner.height + _PADDING
    fill = "#f4f4f4" if box.boxes else "#ffffff"
    frame = (
        f'<rect width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="#777777"/>'
        + _text(_PADDING, _PADDING + 10, box.title)
    )
    return _Piece(width, height, frame + _at(_PADDING, top, inner))


def _cell(cell: Cell, place: str, has_kinds: bool) -> _Piece:
    width = _THREAD_WIDTH * len(cell.core.cpus)
    height = _CELL_HEIGHT + (_KIND_HEIGHT if has_kinds else 0)
    markup = [f"<title>{xml_text(_tooltip(cell, place, has_kinds))}</title>"]
    for index, (cpu, use) in enumerate(zip(cell.core.cpus, cell.uses, strict=True)):
        markup.append(_thread(index * _THREAD_WIDTH, cpu, use))
    if has_kinds and cell.use != OFFLINE:
        label = f"kind {cell.core.kind}"
        markup.append(_centred(width / 2, height - 3, label, 9, "#222222"))
    # Around its hardware threads, so that two cores of one stream are not taken for one.
    markup.append(
        f'<rect width="{width:g}" height="{height:g}" rx="3" fill="none" stroke="#222222"/>'
    )
    return _Piece(width, height, "".join(markup))


def _thread(x: float, cpu: int, use: int | str) -> str:
    stroke = ' stroke="#888888" stroke-dasharray="2 2"' if use == UNUSED else ""
    middle = x + _THREAD_WIDTH / 2
    ink = ink_of(use)
    return (
        f'<rect x="{x:g}" width="{_THREAD_WIDTH}" height="{_CELL_HEIGHT}" '
        f'fill="{fill_of(use)}"{stroke}/>'
        + _centred(middle, 15, str(cpu), 12, ink)
        + _centred(middle, 28, f"s{use}" if isinstance(use, int) else _MARKS[use], 9, ink)
    )


_MARKS = {UNUSED: "–", FORBIDDEN: "×", OFFLINE: "off"}


def _tooltip(cell: Cell, place: str, has_kinds: bool) -> str:
    """
    >>> from deepsched.machine.topology import Core
    >>> core = Core(cpus=(0, 8), l2=0, l3=0, numa_node=0, package=0, kind=0)
    >>> _tooltip(Cell(core, (2, UNUSED)), "L3 0", False)
    'L3 0: CPU 0 stream 2, CPU 8 unused'
    """
    uses = ", ".join(
        f"CPU {cpu} {f'stream {use}' if isinstance(use, int) else use}"
        for cpu, use in zip(cell.core.cpus, cell.uses, strict=True)
    )
    kind = f"kind {cell.core.kind}" if has_kinds and cell.use != OFFLINE else ""
    where = ", ".join(filter(None, (place, kind)))
    return f"{where}: {uses}" if where else uses


def _legend(diagram: Diagram) -> _Piece:
    entries = [_legend_entry(use, text) for use, text in diagram.legend]
    num_streams = len(diagram.streams)
    width = max(entry.width for entry in entries[:num_streams])  # in columns
    streams = [_Piece(width, entry.height, entry.markup) for entry in entries[:num_streams]]
    return _stack([_flow(streams, _WIDTH), *entries[num_streams:]])


def _legend_entry(use: int | str, text: str) -> _Piece:
    dashes = ' stroke-dasharray="2 2"' if use == UNUSED else ""
    swatch = f'<rect width="26" height="14" fill="{fill_of(use)}" stroke="#888888"{dashes}/>'
    mark = f"s{use}" if isinstance(use, int) else _MARKS[use]
    label = _text(32, 11, text)
    markup = swatch + _centred(13, 11, mark, 9, ink_of(use)) + label
    return _Piece(40 + len(text) * _LETTER, 14, markup)


def _warning(title: str, text: str) -> _Piece:
    letters = int(_WIDTH / _LETTER)
    return _stack(
        [
            _text_block(textwrap.wrap(title, int(letters / _BOLD)), weight="bold"),
            _text_block(textwrap.wrap(text, letters)),
        ],
        gap=0,
    )
