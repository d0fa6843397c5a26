"""Numbers and names formatted for display."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape


def rounded(number: float) -> str:
    """A number rounded for display: two decimals, or two significant digits below 1.

    >>> rounded(12.345), rounded(0.0012345)
    ('12.35', '0.0012')
    """
    return f"{number:.2f}" if number >= 1 else f"{number:.2g}"


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters; the middle goes, since paths differ at their ends.

    >>> shortened("/srv/models/resnet50.onnx", 16), shortened("mlp.onnx", 16)
    ('/srv/m…et50.onnx', 'mlp.onnx')
    """
    if len(text) <= width:
        return text
    begin = max(0, width - 1) * 2 // 5
    return f"{text[:begin]}…{text[begin + len(text) + 1 - width :]}"


def printable(text: str, keep: str = "") -> str:
    r"""`text` with what is not printable escaped, but for the characters in `keep`.

    For names out of models and file systems, which may hold anything: a terminal would obey escape
    sequences, and lone surrogates (a path that is not UTF-8) cannot be encoded.

    >>> print(printable("\x1b[2Jconv é\n"))
    \x1b[2Jconv é\n
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def xml_text(text: str) -> str:
    r"""`text` as the content of an XML element, which cannot hold control characters.

    >>> print(xml_text("a<b\x1b"))
    a&lt;b\x1b
    """
    return escape(printable(text, keep="\n"))


def csv_cell(value: Any) -> Any:
    """A value for a CSV file; spreadsheets take text that begins so for a formula, and run it.

    >>> csv_cell("=HYPERLINK(A1)"), csv_cell(-1.5)
    ("'=HYPERLINK(A1)", -1.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    # Tab and carriage return, which they skip, have been escaped.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
