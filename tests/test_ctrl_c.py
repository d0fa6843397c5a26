"""Ctrl-C at any time ends a command without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

# A byte on stdout says that our code acts from here on. Before, Python starts, and says what it
# likes.
TOLD = """
import contextlib, os, runpy, sys
import deepsched.cli
exits_on_ctrl_c = deepsched.cli.exits_on_ctrl_c
@contextlib.contextmanager
def told():
    with exits_on_ctrl_c():
        os.write(1, b"!")
        yield
deepsched.cli.exits_on_ctrl_c = told
"""
SCRIPT = TOLD + "sys.exit(deepsched.cli.main())"  # as pip's console script does
MODULE = TOLD + 'runpy.run_module("deepsched", run_name="__main__", alter_sys=True)'


@pytest.mark.parametrize(
    ("code", "arguments", "longest"),
    [
        (SCRIPT, ["topology"], 0.2),
        (SCRIPT, ["doctor"], 0.2),
        pytest.param(
            *(SCRIPT, ["benchmark", "-t", "0.2", "-w", "0", "-q"], 0.5), marks=pytest.mark.field
        ),
        (MODULE, ["topology"], 0.2),
    ],
    ids=["topology", "doctor", "benchmark", "module"],
)
def test_ctrl_c_at_any_time_prints_one_line_at_most(code, arguments, longest):
    seen = set()
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.read(1) == "!"
        time.sleep(0.001 + longest * number / 12)  # not to wait for something: any moment will do
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert err in ("", "deepsched: interrupted\n")
        assert process.returncode in (0, 1, 130, -signal.SIGINT)  # 1: doctor warns
        assert bool(err) <= (process.returncode != 0)
        seen.add(process.returncode)
    assert -signal.SIGINT in seen  # some came while it imports


def test_commands_import_only_what_they_need():
    code = (
        "import sys\nfrom deepsched.cli import main\nmain(['topology', '--json'])\n"
        "assert not {'numpy', 'onnx', 'deepsched.engine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_program_keeps_its_own_sigint_handler():
    code = (
        "import signal\nfrom deepsched.cli import main\n"
        "before = signal.getsignal(signal.SIGINT)\nmain(['cache', 'path'])\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nmain(['cache', 'path'])\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["topology"], ["topology", "--json"], ["cache", "list"]])
def test_a_full_disk_on_stdout_is_one_line(arguments, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deepsched", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == "deepsched: cannot write to stdout: No space left on device\n"
