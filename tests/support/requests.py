"""Inputs for models.spin and models.gather, and a request that keeps a stream busy."""

from __future__ import annotations

import threading

import numpy as np

# For models.spin.
STEPS = np.array(300, np.int64)
SQUARE = np.zeros((64, 64), np.float32)
LONG = [np.array(10**9, np.int64), SQUARE]  # minutes: only ever stopped

# For models.gather: the index is out of range, so the kernel fails.
BAD = [np.array([0], np.float32), np.array([5], np.int64)]


def item(i):
    """Inputs for models.gather whose result is [i]."""
    return [np.array([i], np.float32), np.array([0], np.int64)]


def run_until_busy(engine):
    """Submits a request of minutes to models.spin; returns its future once it runs."""
    future = engine.submit(LONG)
    while not future.running():
        threading.Event().wait(0.001)
    return future
