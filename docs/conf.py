"""Configuration of the documentation site; `make docs` builds it, and a warning is an error.

The source folder is the repository's root, not docs/, so that a link to README.md or examples/ is
the same relative path on GitHub and in the site.
"""

import dataclasses
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

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
include_patterns = ["*.md", "docs/**.md", "examples/README.md", "deepsched/runtime/README.md"]
exclude_patterns = [".*", "build", "**/__pycache__"]
root_doc = "docs/README"
external_toc_path = "docs/_toc.yml"

html_theme = "furo"
html_title = project
html_copy_source = False
html_extra_path = ["site"]  # index.html, which leads to docs/README.html

smartquotes = False  # text stays as it is in the source
highlight_language = "none"  # where a block names no language
myst_heading_anchors = 3  # the anchors that GitHub gives to headings

# Docstrings: Google style, with plain `backticks`. Those link where they hold a public name.
default_role = "py:obj"
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
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


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _clean_docstring, priority=400)
    app.connect("autodoc-process-signature", _drop_signature)
