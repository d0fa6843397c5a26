"""Python code in a process of its own; it may import from tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def start_python(code, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=60):
    """Waits for the process to end; returns its stdout and stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"hung; it printed {out!r} and {err!r}") from None
    return out, err


def run_python(code, **environment):
    """Returns what the code prints; it must exit with 0."""
    process = start_python(code, **environment)
    out, err = finish(process)
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
    return out
