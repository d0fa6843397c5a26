"""The lowest versions that pyproject.toml allows, as pip takes them: NAME==VERSION, one a line.

    python tests/support/floors.py [build]

Of what deepsched needs to run, and of its element types; with `build`, of what it is built with.
Runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def floors(of: str = "run") -> dict[str, str]:
    """Version by package."""
    project = tomllib.loads(PYPROJECT.read_text())
    requirements = (
        project["build-system"]["requires"]
        if of == "build"
        else project["project"]["dependencies"]
        + project["project"]["optional-dependencies"]["types"]
    )
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w-]+)(?:>=|==)([\d.]+)", requirement)
        assert match, f"{requirement}: give one lowest version"
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    for name, version in floors(*sys.argv[1:]).items():
        print(f"{name}=={version}")
