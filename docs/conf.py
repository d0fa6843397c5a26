"""Configuration of the documentation site; `make docs` builds it, and a warning is an error.

The source folder is the repository's root, not docs/, so that a link to README.md or examples/ is
the same relative path on GitHub and in the site.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from deepsched import advice, analysis, benchmark, doctor
from deepsched.cli.help import HelpFormatter
from deepsched.version import __version__

project = "deepsched"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
    "sphinx_external_toc",
]
include_patterns = [
    "*.md",
    "docs/**.md",
    "deploy/README.md",
    "examples/README.md",
    "deepsched/runtime/README.md",
]
exclude_patterns = [".*", "build", "**/__pycache__"]
root_doc = "docs/README"
external_toc_path = "docs/_toc.yml"

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_extra_path = ["site"]  # index.html, which leads to docs/README.html

smartquotes = False  # text stays as it is in the source
highlight_language = "none"  # where a block names no language
myst_heading_anchors = 3  # the anchors that GitHub gives to headings

# Docstrings: Google style, with plain `backticks`. Those link where they hold a public name.
default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def _clean_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Runs before napoleon."""
    if re.match(r"Alias for field number \d+$", lines[0] if lines else ""):
        lines.clear()  # a NamedTuple's field without a docstring
    elif what in ("attribute", "property"):
        # Napoleon reads "CPU share: 0 to 1" as a type and a text, in the first line only. So the
        # first line is an escaped newline, which renders as nothing.
        lines.insert(0, "\\")


def _drop_signature(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Results and protocols: nobody calls these, and their fields are listed below."""
    is_data = inspect.isclass(obj) and (
        dataclasses.is_dataclass(obj) or hasattr(obj, "_fields") or hasattr(obj, "_is_protocol")
    )
    return ("", "") if is_data else None


def _list_functions_first(app: Sphinx) -> None:
    """autodoc lists the members of a module in the order of its `__all__`."""
    for module in (advice, analysis, benchmark, doctor):
        names = vars(module)
        module.__all__.sort(key=lambda name, names=names: not inspect.isfunction(names[name]))


def _keep_lines(app: Sphinx, doctree: nodes.document) -> None:
    """The help texts of the command line, which sphinx-argparse-cli makes one paragraph each."""
    if app.env.docname == "docs/reference/command-line":
        for paragraph in list(doctree.findall(nodes.paragraph)):
            if "\n" in paragraph.astext():
                paragraph.replace_self(list(_blocks_of(paragraph.astext())))


def _blocks_of(text: str) -> Iterator[nodes.Element]:
    for block in text.strip().split("\n\n"):
        title, _, rest = block.partition("\n")
        if "\n  " not in block:
            yield nodes.paragraph("", block)
            continue
        if rest.startswith("  "):
            yield nodes.paragraph("", title)
            block = rest
        wrapped = textwrap.dedent(HelpFormatter("")._fill_text(block, _HELP_WIDTH, ""))
        yield nodes.literal_block(wrapped, wrapped, language="none")


_HELP_WIDTH = 80


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _clean_docstring, priority=400)
    app.connect("builder-inited", _list_functions_first)
    app.connect("autodoc-process-signature", _drop_signature)
    app.connect("doctree-read", _keep_lines)
