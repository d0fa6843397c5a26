"""Models whose requests run together, without a trial of whether that pays."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support import models

SIZES = [1, 2, 4, 8, 16]
HALVED = [1000, 1500, 2000, 3000, 5000]
"""Run lengths at these sizes, ns: batches pay."""


def picks():
    """y[i] = x[i, index[i]]; fails where an index is out of range."""
    return models.make(
        [helper.make_node("GatherElements", ["x", "index"], ["y"], axis=1)],
        [models.tensor("x", ["n", "k"]), models.tensor("index", ["n", 1], TensorProto.INT64)],
        [models.tensor("y", ["n", 1])],
    )


def first_only():
    """y is the first item of x, so it has one however many x has; no shape tells."""
    return models.make(
        [helper.make_node("Compress", ["x", "first"], ["y"], axis=0)],
        [models.tensor("x", ["n", 4])],
        [models.tensor("y", ["m", 4])],
        [numpy_helper.from_array(np.array([True]), "first")],
    )


def only_one():
    """y = x, for one item; more of them fail."""
    return models.make(
        [
            helper.make_node("Squeeze", ["x", "axes"], ["row"]),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["row", "shape"], ["y"]),
        ],
        [models.tensor("x", ["n", 4])],
        [models.tensor("y", ["n", 4])],
        [numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )


def let_run_together(engine, sizes=SIZES, run_ns=HALVED, item_size=0):
    engine._model.set_batching(list(sizes), list(run_ns), item_size)


def pick(i, items=1, width=3):
    """Inputs for `picks`, and its answer."""
    x = (np.arange(items * width, dtype=np.float32) + 100 * i).reshape(items, width)
    index = np.full((items, 1), i % width, np.int64)
    return [x, index], np.take_along_axis(x, index, 1)
