"""Imports point down, as ARCHITECTURE.md says; the contracts are in pyproject.toml."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def broken_contracts(root):
    """What import-linter says of the package below `root`; empty if all contracts hold."""
    code = "import sys; from importlinter.cli import lint_imports_command as lint; lint()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=root,
        # In front of the installed package: it is the copy that is looked at.
        env={"PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in ran.stdout, ran.stderr
    return "" if ran.returncode == 0 else ran.stdout.partition("Broken contracts")[2]


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(
        ROOT / "deepsched", tmp_path / "deepsched", ignore=shutil.ignore_patterns("*.so", "*.cpp")
    )
    return tmp_path


def test_all_imports_point_down():
    assert broken_contracts(ROOT) == ""


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("machine/partition.py", "deepsched.models.cache"),
        ("scheduling/stats.py", "deepsched.engine"),
        ("benchmark/load.py", "deepsched.cli.options"),
        ("machine/sysfs.py", "deepsched.machine.topology"),  # a circle in one package
    ],
)
def test_an_upward_import_is_found(copy, below, above):
    with (copy / "deepsched" / below).open("a") as file:
        file.write(f"\nif TYPE_CHECKING:\n    import {above}\n")
    broken = broken_contracts(copy)
    assert Path(below).stem in broken


def test_the_native_core_imports_only_what_is_below():
    """import-linter reads no .pyx."""
    runtime = ROOT / "deepsched" / "runtime"
    for source in (*runtime.glob("*.pyx"), *runtime.glob("*.pxd")):
        imported = re.findall(r"^(?:from|import) (deepsched\.[\w.]+)", source.read_text(), re.M)
        above = {name for name in imported if not name.startswith("deepsched.runtime")}
        assert above <= {"deepsched.errors", "deepsched.checks"}, source.name
