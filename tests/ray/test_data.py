"""Workers of Ray Data."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import ray

from deepsched.ray import map_batches
from tests.support.ray_cluster import MARKS, WIDTH, leaseholders, row, wait_until

pytestmark = MARKS


def numbers(count, blocks=20):
    return ray.data.range(count, override_num_blocks=blocks).map_batches(
        lambda batch: {
            "id": batch["id"],
            "x": np.repeat(batch["id"][:, None], WIDTH, axis=1).astype(np.float32),
        }
    )


def check(rows, count, weights, column="y"):
    assert sorted(it["id"] for it in rows) == list(range(count))
    for it in rows:
        np.testing.assert_allclose(it[column], row(it["id"])[0] @ weights, rtol=1e-5)


def test_each_row_of_a_data_set_gets_its_outputs(linear):
    path, weights = linear
    found = map_batches(numbers(1000), path, outputs={"y": "scores"}, workers=2, rows=30)
    check(found.take_all(), 1000, weights, "scores")


def test_a_worker_that_is_killed_loses_and_repeats_no_row(linear):
    path, weights = linear
    found = map_batches(numbers(4000, 80), path, workers=2, rows=10)
    rows = iter(found.iter_rows())
    first = [next(rows) for _ in range(10)]
    wait_until(leaseholders, "a worker has its cores")
    os.kill(min(leaseholders()), signal.SIGKILL)
    check([*first, *rows], 4000, weights)


def test_columns_that_are_not_kept_are_left_out(linear):
    path, weights = linear
    found = map_batches(numbers(100), path, keep=["id"]).take_all()
    assert {name for row in found for name in row} == {"id", "y"}
    check(found, 100, weights)


def test_a_column_that_is_missing_is_named(linear):
    with pytest.raises(ray.exceptions.RayTaskError, match="no column 'x' in the data"):
        map_batches(ray.data.range(10), linear[0]).take_all()
