"""A picture of the machine as an SVG file, self-contained, for light and dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deepsched.cli.palette import fill_of, ink_of
from deepsched.cli.svg import BOLD, LETTER, Piece, at, centred, flow, stack, text_at, text_block
from deepsched.formatting import xml_text
from deepsched.machine.diagram import FORBIDDEN, OFFLINE, UNUSED, Box, Cell, Diagram

# Pixels.
_WIDTH = 1080
"""The limit for boxes and text; only the row of a single box may exceed it."""
_LEAF_WIDTH = 508
"""Room for eight cores with two hardware threads each."""
_MARGIN = 24
_PADDING = 8
_CELL_GAP = 4
_THREAD_WIDTH = 30
_CELL_HEIGHT = 34
_KIND_HEIGHT = 13
_LINE = 18


def draw_svg(diagram: Diagram, below: Sequence[Piece] = ()) -> str:
    """Returns the text of an SVG file: boxes, a tooltip per core, a legend, and the warnings.

    Args:
        diagram: what to draw.
        below: pictures to add at the bottom.

    Example:
        >>> from deepsched import Topology, partition
        >>> from deepsched.machine.diagram import build_diagram
        >>> machine = Topology.synthetic(packages=2, cores_per_l3=4)
        >>> draw_svg(build_diagram(machine, partition(machine)))[:46]
        '<svg xmlns="http://www.w3.org/2000/svg" width='
    """
    has_kinds = diagram.has_kinds  # looks at every core
    body = stack(
        [
            text_block([diagram.title], size=18, weight="bold"),
            flow([_box(box, has_kinds) for box in diagram.boxes], _WIDTH),
            _legend(diagram),
            *(_warning(title, text) for title, text in diagram.warnings),
            *below,
        ]
    )
    width, height = body.width + 2 * _MARGIN, body.height + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="DejaVu Sans, Verdana, sans-serif" '
        f'font-size="12" fill="#222222">\n<title>{xml_text(diagram.title)}</title>\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f"{at(_MARGIN, _MARGIN, body)}\n</svg>\n"
    )


# --- What is in the picture -------------------------------------------------------------------


def _box(box: Box, has_kinds: bool) -> Piece:
    if box.boxes:
        inner = flow([_box(each, has_kinds) for each in box.boxes], _WIDTH - 2 * _PADDING)
    else:
        cells = [_cell(cell, box.title, has_kinds) for cell in box.cells]
        inner = flow(cells, _LEAF_WIDTH, _CELL_GAP)
    top = _PADDING + (_LINE if box.title else 0)
    width = max(inner.width, len(box.title) * LETTER) + 2 * _PADDING
    height = top + inner.height + _PADDING
    fill = "#f4f4f4" if box.boxes else "#ffffff"
    frame = (
        f'<rect width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="#777777"/>'
        + text_at(_PADDING, _PADDING + 10, box.title)
    )
    return Piece(width, height, frame + at(_PADDING, top, inner))


def _cell(cell: Cell, place: str, has_kinds: bool) -> Piece:
    width = _THREAD_WIDTH * len(cell.core.cpus)
    height = _CELL_HEIGHT + (_KIND_HEIGHT if has_kinds else 0)
    markup = [f"<title>{xml_text(_tooltip(cell, place, has_kinds))}</title>"]
    for index, (cpu, use) in enumerate(zip(cell.core.cpus, cell.uses, strict=True)):
        markup.append(_thread(index * _THREAD_WIDTH, cpu, use))
    if has_kinds and cell.use != OFFLINE:
        label = f"kind {cell.core.kind}"
        markup.append(centred(width / 2, height - 3, label, 9, "#222222"))
    # Around its hardware threads, so that two cores of one stream are not taken for one.
    markup.append(
        f'<rect width="{width:g}" height="{height:g}" rx="3" fill="none" stroke="#222222"/>'
    )
    return Piece(width, height, "".join(markup))


def _thread(x: float, cpu: int, use: int | str) -> str:
    stroke = ' stroke="#888888" stroke-dasharray="2 2"' if use == UNUSED else ""
    middle = x + _THREAD_WIDTH / 2
    ink = ink_of(use)
    return (
        f'<rect x="{x:g}" width="{_THREAD_WIDTH}" height="{_CELL_HEIGHT}" '
        f'fill="{fill_of(use)}"{stroke}/>'
        + centred(middle, 15, str(cpu), 12, ink)
        + centred(middle, 28, f"s{use}" if isinstance(use, int) else _MARKS[use], 9, ink)
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


def _legend(diagram: Diagram) -> Piece:
    entries = [_legend_entry(use, text) for use, text in diagram.legend]
    num_streams = len(diagram.streams)
    width = max(entry.width for entry in entries[:num_streams])  # in columns
    streams = [Piece(width, entry.height, entry.markup) for entry in entries[:num_streams]]
    return stack([flow(streams, _WIDTH), *entries[num_streams:]])


def _legend_entry(use: int | str, text: str) -> Piece:
    dashes = ' stroke-dasharray="2 2"' if use == UNUSED else ""
    swatch = f'<rect width="26" height="14" fill="{fill_of(use)}" stroke="#888888"{dashes}/>'
    mark = f"s{use}" if isinstance(use, int) else _MARKS[use]
    label = text_at(32, 11, text)
    markup = swatch + centred(13, 11, mark, 9, ink_of(use)) + label
    return Piece(40 + len(text) * LETTER, 14, markup)


def _warning(title: str, text: str) -> Piece:
    letters = int(_WIDTH / LETTER)
    return stack(
        [
            text_block(textwrap.wrap(title, int(letters / BOLD)), weight="bold"),
            text_block(textwrap.wrap(text, letters)),
        ],
        gap=0,
    )
