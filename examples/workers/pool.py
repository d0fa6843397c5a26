"""A batch job in several processes, each with cores of its own.

    python -m examples.workers.pool model.onnx

A pool does not tell its processes how many they are, so this says how many cores each is to have.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from deepsched import Engine, Topology, compile_model
from deepsched.benchmark import bundled_model

engines: list[Engine] = []


def open_engine(path: str, num_cores: int) -> None:
    """In each process, before its first task. One that replaces another waits for its cores."""
    engines.append(compile_model(path, num_cores=num_cores, cores="lease", lease_timeout=30))


def infer(_: int) -> dict[str, Any]:
    """A request on made-up inputs."""
    (engine,) = engines
    outputs = engine.run(engine.generate_random_inputs())
    return {
        "pid": os.getpid(),
        "cpus": engine.context.topology.cpus,
        "shapes": [output.shape for output in outputs],
    }


def main(path: str | None = None, num_processes: int = 2) -> list[dict[str, Any]]:
    """Runs 64 requests."""
    num_cores = max(1, len(Topology.detect().cores) // num_processes)
    context = multiprocessing.get_context("spawn")
    options = (path or bundled_model("squeezenet"), num_cores)
    with context.Pool(num_processes, open_engine, options) as pool:
        return pool.map(infer, range(64), chunksize=1)


if __name__ == "__main__":
    for answer in main(sys.argv[1] if len(sys.argv) > 1 else None):
        print(answer)
