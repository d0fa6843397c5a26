"""Outputs of a model as a column of a Spark data frame, from workers that lease cores.

pip install deepsched pyspark pandas pyarrow
python -m examples.spark_predict [--rows 64]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType

from deepsched import Engine
from deepsched.benchmark import bundled_model


def predictor(model: str) -> Callable[[], Callable[[Any], Any]]:
    """For predict_batch_udf: Spark calls what this returns once in each Python worker."""

    def make_predict() -> Callable[[Any], Any]:
        engine = Engine(model, num_cores=1, cores="lease", lease_timeout=60)

        def predict(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.stack([out[0].ravel() for out in engine.map([row[None]] for row in rows)])

        return predict

    return make_predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(bundled_model("squeezenet")))
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    with Engine(args.model, num_cores=1) as engine:
        shape = [int(size or 1) for size in engine.input_shapes[0][1:]]
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "16")
        .getOrCreate()
    )
    rng = np.random.default_rng(0)
    rows = [(rng.random(np.prod(shape)).astype(np.float32).tolist(),) for _ in range(args.rows)]
    images = spark.createDataFrame(rows, "image array<float>")
    scores = predict_batch_udf(
        predictor(args.model),
        return_type=ArrayType(FloatType()),
        batch_size=16,
        input_tensor_shapes=[shape],
    )
    found = images.select(scores("image").alias("scores")).collect()
    print(f"{len(found)} rows of {len(found[0]['scores'])} outputs")
    spark.stop()


if __name__ == "__main__":
    main()
