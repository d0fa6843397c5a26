"""Help texts, fitted to the terminal."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator

# "  name   unit   meaning": the meaning goes on below itself.
_DEFINITION = re.compile(r"( *\S.*  )\S")


class HelpFormatter(argparse.HelpFormatter):
    """Keeps paragraphs, definitions and examples of descriptions and epilogs apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.strip().startswith("deepsched ") else _wrapped(line, hanging, width)
            for line, hanging in _entries(text)
        )


def _wrapped(line: str, hanging: int, width: int) -> str:
    return textwrap.fill(
        line, width, subsequent_indent=" " * hanging, drop_whitespace=True,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _entries(text: str) -> Iterator[tuple[str, int]]:
    """(text, how far what follows of it is indented), each in one line."""
    entry, hanging = "", 0
    for line in text.splitlines():
        found = _DEFINITION.match(line)
        indent = len(line) - len(line.lstrip())
        is_example = line.strip().startswith("deepsched ")
        goes_on = entry and line.strip() and indent == hanging and not is_example
        if goes_on and not (found and indent < len(found[1]) and hanging == 0):
            entry = f"{entry} {line.strip()}"
            continue
        if entry:
            yield entry, hanging
        if not line.strip() or is_example:
            yield line.rstrip(), 0
            entry = ""
            continue
        entry, hanging = line, len(found[1]) if found and found[1].startswith(" ") else indent
    if entry:
        yield entry, hanging
