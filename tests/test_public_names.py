"""The root package's names, which are imported on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deepsched


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(Path(deepsched.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == deepsched._MODULE_OF
    assert set(deepsched.__all__) == {*seen, "__version__"}


@pytest.mark.parametrize("name", deepsched.__all__)
def test_names_are_there_without_an_import_of_their_module(name):
    code = f"import deepsched\nassert {name!r} in dir(deepsched)\ndeepsched.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_submodules_are_there_without_an_import_of_their_own():
    code = (
        "import deepsched\ndeepsched.errors.DeepschedError, deepsched.advice.advise\n"
        "deepsched.analysis.analyze, deepsched.backend.run_model, deepsched.benchmark.measure\n"
        "deepsched.doctor.check_hardware, deepsched.timeline.Trace\n"
        "assert callable(deepsched.partition) and not hasattr(deepsched, 'nonsense')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_star_imports_every_name():
    code = "from deepsched import *\nEngine, partition, compile_model, Topology"
    subprocess.run([sys.executable, "-c", code], check=True)
