"""Help texts that fit the terminal."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator

# "  name   unit   meaning": its continuation lines are indented to the meaning's column.
_DEFINITION = re.compile(r"( *\S.*  )\S")


class HelpFormatter(argparse.HelpFormatter):
    """Wraps descriptions and epilogs, but keeps their paragraphs, definitions and examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.strip().startswith("deepsched ") else _wrapped(line, hanging, width)
            for line, hanging in _entries(text)
        )


def _wrapped(line: str, hanging: int, width: int) -> str:
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entries(text: str) -> Iterator[tuple[str, int]]:
    """Each paragraph, definition or example as one line, with the indent of its continuation
    lines."""
    entry, hanging = "", 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        is_whole = not line.strip() or line.strip().startswith("deepsched ")
        if entry and indent == hanging and not is_whole:
            entry = f"{entry} {line.strip()}"
            continue
        if entry:
            yield entry, hanging
            entry = ""
        if is_whole:
            yield line.rstrip(), 0
        else:
            definition = _DEFINITION.match(line) if indent else None
            entry, hanging = line, indent if definition is None else len(definition[1])
    if entry:
        yield entry, hanging
