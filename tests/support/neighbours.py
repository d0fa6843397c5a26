"""Other processes that keep every CPU busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys


@contextlib.contextmanager
def busy_neighbours():
    """One pinned to each CPU that this process may use, until the block's end."""
    cpus = sorted(os.sched_getaffinity(0))
    code = "print('up', flush=True)\nwhile True: pass"
    neighbours = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in cpus
    ]
    try:
        for neighbour, cpu in zip(neighbours, cpus, strict=True):
            os.sched_setaffinity(neighbour.pid, {cpu})
            neighbour.stdout.readline()
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.communicate()
