"""Programs that are packed into a folder, a file or an archive, and run without an environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import deepsched
from tests.support import models
from tests.support.plain_onnxruntime import plain
from tests.support.processes import run_python

PACKAGE = Path(deepsched.__file__).parent
PROGRAM = """
import sys
import numpy as np
from deepsched import compile_model

if __name__ == "__main__":
    with compile_model(sys.argv[1], cache_dir=None) as engine:
        np.save(sys.argv[2], engine.run([np.load(sys.argv[3])])[0])
"""


@pytest.mark.parametrize("kind", ["--onedir", "--onefile"])
@pytest.mark.timeout(600)
def test_pyinstaller_needs_no_flags(tmp_path, mlp, kind):
    pytest.importorskip("PyInstaller")
    source = tmp_path / "program.py"
    source.write_text(PROGRAM)
    frozen = subprocess.run(
        [sys.executable, "-m", "PyInstaller", kind, "--log-level", "WARN", str(source)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},  # as if it was installed there
        capture_output=True,
        text=True,
    )
    assert frozen.returncode == 0, frozen.stderr
    x = np.ones((1, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    program = tmp_path / "dist" / ("program/program" if kind == "--onedir" else "program")
    subprocess.run(
        [program, mlp, tmp_path / "y.npy", tmp_path / "x.npy"],
        cwd="/",
        env={"TMPDIR": str(tmp_path)},
        check=True,
    )
    (expected,) = plain(models.mlp()).run(None, {"x": x})
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected)


def imported_by_statements(path):
    """Names of modules, and of what might be one, in a file of Python."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def test_every_module_of_the_core_stands_in_an_import_of_python():
    """What freezes programs reads no others."""
    seen = {name for path in PACKAGE.rglob("*.py") for name in imported_by_statements(path)}
    files = [*PACKAGE.glob("runtime/*.pyx"), *PACKAGE.glob("runtime/[a-z]*.py")]
    assert {f"deepsched.runtime.{file.stem}" for file in files} <= seen


def test_an_archive_says_that_it_must_be_unpacked(tmp_path):
    archive = tmp_path / "program.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in PACKAGE.rglob("*.py"):
            file.write(path, path.relative_to(PACKAGE.parent))
    out = run_python(
        """
        try:
            from deepsched import Engine
        except ImportError as error:
            print(error)
        """,
        PYTHONPATH=str(archive),
        PYTHONSAFEPATH="1",  # not the working folder first
    )
    assert "program.pyz" in out and "Unpack the archive" in out


def test_a_frozen_program_without_onnxruntimes_library_says_what_it_lacks():
    code = """
        import importlib.util, sys
        sys.frozen = True
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "onnxruntime" else found(name)
        from deepsched.errors import OrtImportError
        from deepsched.runtime.library import find_library
        try:
            find_library()
        except OrtImportError as error:
            print(error)
        """
    assert "capi/libonnxruntime.so" in run_python(code)
