"""Ctrl-C at any time ends a command without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

# As pip's console script does; a byte on stdout says that our code can act from here on. Before,
# Python starts, and says what it likes.
SCRIPT = """
import os, sys
from deepsched.cli import main
os.write(1, b"!")
sys.exit(main())
"""
MODULE = """
import os, runpy
import deepsched.cli
main = deepsched.cli.main
def told():  # runpy is Python's as well
    os.write(1, b"!")
    return main()
deepsched.cli.main = told
runpy.run_module("deepsched", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("code", "arguments", "longest"),
    [
        (SCRIPT, ["topology"], 0.2),
        (SCRIPT, ["doctor"], 0.2),
        (SCRIPT, ["benchmark", "-t", "0.2", "-w", "0", "-q"], 0.5),
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
        # Not to wait for something: any moment will do once main() has been called.
        time.sleep(0.01 + longest * number / 12)
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
