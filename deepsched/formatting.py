"""Numbers and names formatted for display."""

from __future__ import annotations


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
