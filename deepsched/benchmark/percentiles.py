"""Percentiles of latency, and how many requests they take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# So many requests should lie beyond a percentile: it says how the slowest do, not which one was.
_NUM_BEYOND = 3


def requests_for(percent: float) -> int:
    """How many requests a percentile takes: 3 of them are beyond it.

    >>> [requests_for(percent) for percent in (50, 90, 95, 99, 99.9)]
    [6, 30, 60, 300, 3000]
    """
    return round(_NUM_BEYOND * 100 / (100 - percent))


def latency_percentile(latencies_ms: Any, num_dropped: int, percent: float) -> float:
    """A percentile over all requests that arrived, in ms: dropped ones are infinitely late.

    >>> latency_percentile([1.0, 2.0, 3.0], 1, 50), latency_percentile([1.0, 2.0, 3.0], 1, 99)
    (2.5, inf)
    """
    in_order = np.sort(latencies_ms)
    # Between two requests it is interpolated, as by np.percentile, which infinities turn into NaN.
    rank = (len(in_order) + num_dropped - 1) * (percent / 100)
    below, above = math.floor(rank), math.ceil(rank)
    if above >= len(in_order):
        return math.inf
    return float(in_order[below] + (rank - below) * (in_order[above] - in_order[below]))
