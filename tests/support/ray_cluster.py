"""What tests on a real Ray have in common."""

from __future__ import annotations

import time

import numpy as np
import pytest

from deepsched.machine.leases import holders

MARKS = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own
]

WIDTH = 16
"""Of an input of the model `linear`."""


def row(number):
    """An input by which its answer can be told."""
    return np.full((1, WIDTH), number, np.float32)


def leaseholders():
    """The processes that have cores for themselves."""
    return {holder.pid for holder in holders() if holder.is_lease}


def wait_until(condition, what, seconds=60):
    """Looks until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
