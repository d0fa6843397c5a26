"""Outputs of a model for the rows of a Dask array, computed in processes that lease cores.

pip install deepsched 'dask[array]'
python -m examples.dask_predict [--model model.onnx] [--rows 64]
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from typing import Any

import dask
import dask.array as da
import numpy as np

from deepsched import Engine
from deepsched.benchmark import bundled_model


@cache
def engine_for(model: str) -> Engine:
    """One in each worker process, on one core that no other process has."""
    return Engine(model, num_cores=1, cores="lease", lease_timeout=60)


def predict(rows: np.ndarray[Any, Any], model: str) -> np.ndarray[Any, Any]:
    """The first output for each row, flat."""
    engine = engine_for(model)
    return np.stack([out[0].ravel() for out in engine.map([row[None]] for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(bundled_model("squeezenet")))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with Engine(args.model, num_cores=1) as engine:
        shape = [int(size or 1) for size in engine.input_shapes[0][1:]]
        width = math.prod(int(size or 1) for size in engine.output_shapes[0][1:])
    images = da.random.random((args.rows, *shape), chunks=(8, *shape)).astype(np.float32)
    scores = images.map_blocks(
        predict,
        args.model,
        dtype=np.float32,
        chunks=(images.chunks[0], (width,)),
        drop_axis=list(range(1, images.ndim)),
        new_axis=1,
    )
    with dask.config.set(scheduler="processes", num_workers=args.workers):
        found = scores.compute()
    print(f"{found.shape[0]} rows of {found.shape[1]} outputs")


if __name__ == "__main__":
    main()
