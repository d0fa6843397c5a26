"""What fuzzing begins with and what it has found, without a fuzzer; and that it tells a failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.target import FOLDER, names

pytestmark = pytest.mark.fuzz


def _run(*arguments, folder=FOLDER.parent):
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{FOLDER.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_properties_hold_for_all_inputs_in_the_repository():
    tried = _run("--seconds", "0")
    assert tried.returncode == 0, tried.stderr
    assert re.findall(r"^(\w+): [1-9]\d* inputs", tried.stdout, re.M) == names()


BAD = '''
"""Nothing is bad."""

from fuzz.target import Target


def check(data):
    assert b"bad" not in data


TARGET = Target(check, lambda: [b"x"], words=(b"bad",))
'''


def test_a_property_that_does_not_hold_fails_the_run_and_is_shown_by_the_command(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "fuzz")
    (tmp_path / "fuzz" / "targets" / "bad.py").write_text(BAD)

    fuzzed = _run("bad", "--seconds", "20", folder=tmp_path)
    assert fuzzed.returncode == 1, fuzzed.stdout + fuzzed.stderr
    assert 'assert b"bad" not in data' in fuzzed.stdout
    shown = re.search(r"^python -m fuzz (bad --input (\S+))$", fuzzed.stdout, re.M)
    assert b"bad" in Path(shown[2]).read_bytes()
    again = _run(*shown[1].split(), folder=tmp_path)
    assert again.returncode == 1
    assert "AssertionError" in again.stderr
