"""Colours for the terminal and for files, distinct to the colour-blind as well.

Those of streams repeat after seven, so whatever is coloured also shows its stream's number.
"""

from __future__ import annotations

# M. Okabe and K. Ito, "Color Universal Design", without black.
_STREAMS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_DARK = "#0072b2"
_GREY = ("#b4b4b4", "#3c3c3c")
_OTHERS = {"unused": ("#ffffff", "#222222"), "forbidden": _GREY, "offline": _GREY}


def fill_of(use: int | str) -> str:
    """The fill colour of a stream (by index), or of "unused", "forbidden", "offline".

    Example:
        >>> fill_of(0), fill_of(7), fill_of("unused")
        ('#56b4e9', '#56b4e9', '#ffffff')
    """
    return _STREAMS[use % len(_STREAMS)] if isinstance(use, int) else _OTHERS[use][0]


def ink_of(use: int | str) -> str:
    """The text colour on `fill_of(use)`, with a contrast ratio of at least 4.5."""
    if not isinstance(use, int):
        return _OTHERS[use][1]
    return "#ffffff" if fill_of(use) == _DARK else "#000000"


# ColorBrewer's YlOrBr in 5 classes: the order shows in grey as well.
_HEAT = (
    ("#ffffd4", "#000000"),
    ("#fed98e", "#000000"),
    ("#fe9929", "#000000"),
    ("#d95f0e", "#000000"),
    ("#993404", "#ffffff"),
)


def heat_of(share: float) -> tuple[str, str]:
    """Fill and text colour of a figure: 0 for the lowest, 1 for the highest.

    Example:
        >>> heat_of(0.0), heat_of(1.0)
        (('#ffffd4', '#000000'), ('#993404', '#ffffff'))
    """
    return _HEAT[min(int(share * len(_HEAT)), len(_HEAT) - 1)]
