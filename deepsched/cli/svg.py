"""Pieces of an SVG picture, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepsched.formatting import xml_text

# Pixels.
GAP = 10
LETTER = 6.6
"""The average width of a letter at 12 px."""
BOLD = 1.2
"""The factor for bold letters."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something drawn from its own origin."""

    width: float
    height: float
    markup: str


def at(x: float, y: float, piece: Piece) -> str:
    """The piece's markup, its origin moved to (x, y)."""
    return f'<g transform="translate({x:g} {y:g})">{piece.markup}</g>'


def stack(pieces: Iterable[Piece], gap: float = GAP) -> Piece:
    """One below the other."""
    width = y = 0.0
    markup = []
    for piece in pieces:
        markup.append(at(0, y, piece))
        width = max(width, piece.width)
        y += piece.height + gap
    return Piece(width, y - gap, "\n".join(markup))


def flow(pieces: Sequence[Piece], most_width: float, gap: float = GAP) -> Piece:
    """Side by side, in as many rows as `most_width` asks for."""
    x = y = width = row_height = 0.0
    markup = []
    for piece in pieces:
        if x > 0 and x + piece.width > most_width:
            x, y, row_height = 0.0, y + row_height + gap, 0.0
        markup.append(at(x, y, piece))
        x += piece.width + gap
        width, row_height = max(width, x - gap), max(row_height, piece.height)
    return Piece(width, y + row_height, "\n".join(markup))


def text_at(x: float, y: float, text: str, attributes: str = "") -> str:
    """One line; (x, y) is where its baseline begins, or what `attributes` anchor."""
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{xml_text(text)}</text>'


def centred(x: float, y: float, text: str, size: int, colour: str) -> str:
    """One line in the middle of x."""
    return text_at(x, y, text, f'font-size="{size}" text-anchor="middle" fill="{colour}"')


def text_block(lines: Sequence[str], size: float = 12, weight: str = "normal") -> Piece:
    """Lines below one another."""
    height = size * 1.5
    style = f'font-size="{size:g}" font-weight="{weight}"'
    markup = (text_at(0, index * height + size, line, style) for index, line in enumerate(lines))
    letter = LETTER * (BOLD if weight == "bold" else 1) * size / 12
    width = max(len(line) for line in lines) * letter
    return Piece(width, height * len(lines), "".join(markup))
