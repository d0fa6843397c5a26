"""The tables of docs/reference.md, made of the code's own signatures and docstrings.

    python -m tests.reference

writes them anew; tests/test_guide.py fails while they differ. In the page each stands between
`<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import deepsched
from deepsched import advice, analysis, benchmark, errors
from deepsched.cli import program
from deepsched.invocation import sequential_timing
from deepsched.models import compiled, memory_usage
from deepsched.scheduling import stats
from deepsched.timeline import trace

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"

_TABLE = re.compile(r"<!-- (?!end)(.+?) -->\n.*?<!-- end -->", re.S)


def rewritten(text: str) -> str:
    """The page with every table as the code would have it."""
    return _TABLE.sub(lambda found: f"<!-- {found[1]} -->\n\n{table(found[1])}\n<!-- end -->", text)


def table(name: str) -> str:
    """The table of that name, or KeyError."""
    kind, _, what = name.partition(" ")
    return _MAKERS[kind](what)


# --- What a table is made of ----------------------------------------------------------------------


def arguments_of(path: str) -> str:
    """A line for each parameter, and what is raised."""
    function = _resolve(path)
    doc = inspect.getdoc(function) or ""
    meanings = _entries(_section(doc, "Args"))
    rows = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name.startswith("_") or parameter.name == "self":
            continue
        default = (
            "required"
            if parameter.default is parameter.empty
            else f"`{_as_code(parameter.default)}`"
        )
        kind = ", by keyword" if parameter.kind is parameter.KEYWORD_ONLY else ""
        type_ = f"`{parameter.annotation}`{kind}"
        rows.append((f"`{parameter.name}`", type_, default, meanings.get(parameter.name, "")))
    text = _markdown(("argument", "type", "default", "meaning"), rows)
    for section in ("Returns", "Raises"):
        if body := _section(doc, section):
            text += f"\n{section}: {_one_line(body)}\n"
    return text


def properties_of(path: str) -> str:
    """A line for each public property."""
    rows = []
    for name, value in vars(_resolve(path)).items():
        if isinstance(value, property) and not name.startswith("_"):
            type_ = inspect.signature(value.fget).return_annotation
            rows.append((f"`{name}`", f"`{type_}`", _one_line(inspect.getdoc(value) or "")))
    return _markdown(("property", "type", "meaning"), rows)


def fields_of(path: str) -> str:
    """A line for each field of a dataclass or named tuple, with the text below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(_resolve(path)))).body
    assert isinstance(tree, ast.ClassDef)
    rows = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            meaning = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meaning = inspect.cleandoc(str(after.value.value))
            rows.append((f"`{node.target.id}`", f"`{ast.unparse(node.annotation)}`", meaning))
    return _markdown(("field", "type", "meaning"), rows)


def options_of(command: str) -> str:
    """A line for each option of a subcommand."""
    rows = [
        (
            f"`{', '.join(action.option_strings) or action.metavar or action.dest}`"
            f"{_value(action)}",
            action.help or "",
        )
        for action in actions_of(command)
    ]
    return _markdown(("option", "meaning"), rows)


def fields_of_benchmark(_: str) -> str:
    """A line for each field of a report."""
    rows = [(f"`{name}`", unit, meaning) for name, (unit, meaning) in benchmark.FIELDS.items()]
    return _markdown(("field", "unit", "meaning"), rows)


def errors_there_are(_: str) -> str:
    """A line for each exception."""
    rows = []
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
            rows.append((f"`{name}`", bases, _one_line(value.__doc__ or "")))
    return _markdown(("exception", "is also", "when"), rows)


_MAKERS: dict[str, Callable[[str], str]] = {
    "arguments": arguments_of,
    "properties": properties_of,
    "fields": fields_of,
    "options": options_of,
    "report": fields_of_benchmark,
    "errors": errors_there_are,
}


def parsers_in(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Its subcommands' parsers, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


PARSERS = parsers_in(program.build_parser())
"""The parser of each subcommand, by name."""

_MODULES = (
    deepsched,
    advice,
    analysis,
    benchmark,
    compiled,
    memory_usage,
    stats,
    sequential_timing,
    trace,
)


def actions_of(command: str) -> list[argparse.Action]:
    """The options and arguments of a subcommand, but for -h; those of its own subcommands too."""
    parser = PARSERS[command]
    return [
        action
        for each in (parser, *parsers_in(parser).values())
        for action in each._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        and action.help != argparse.SUPPRESS
    ]


def _value(action: argparse.Action) -> str:
    if action.nargs == 0 or not action.option_strings:
        return ""
    value = action.metavar or ("|".join(action.choices) if action.choices else "N")
    return f" `{value}`"


def _resolve(path: str) -> object:
    first, *rest = path.split(".")
    found = next(getattr(module, first) for module in _MODULES if hasattr(module, first))
    for name in rest:
        found = getattr(found, name)
    return found


# --- Docstrings -----------------------------------------------------------------------------------


def _section(doc: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.M)
    return textwrap.dedent(found[1]) if found else ""


def _entries(section: str) -> dict[str, str]:
    """`a, b: text`, with more of the text indented below -> the text of each name."""
    entries: dict[str, str] = {}
    for found in re.finditer(r"^([\w, ]+): (.*(?:\n    .*)*)", section, re.M):
        for name in found[1].split(", "):
            entries[name] = _one_line(found[2])
    return entries


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _as_code(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _markdown(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    assert rows

    def lines() -> Iterator[str]:
        for row in (titles, ("---",) * len(titles), *rows):
            cells = (_one_line(cell).replace("|", r"\|") for cell in row)
            yield f"| {' | '.join(cells)} |\n"

    return "".join(lines())


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
