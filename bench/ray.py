"""Ray Data with workers on leased cores, against engine.map on the same cores.

    python -m bench.ray [--rows 10000] [--model squeezenet] [--workers 2]

Images are made by Ray Data, as bytes, and cast in the model. Rates are of rows from the
first answers to the last, alternately; opening the model counts for neither. Judged by the exit
code: 0.95 of engine.map's rate, and each row once and with the right outputs, also where a worker
is killed halfway. Needs deepsched[ray] and as many idle cores as workers.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import ray
import ray.data
from onnx import TensorProto, helper

from deepsched import Engine
from deepsched.benchmark import bundled_model
from deepsched.machine.leases import holders
from deepsched.ray import map_batches

_LEAST_RATE = 0.95
_NUM_IMAGES = 8
"""Different ones: row n has the image n modulo this."""
_ROWS = 64  # in a batch
_SHAPE = (3, 224, 224)


def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (_NUM_IMAGES, *_SHAPE), np.uint8)


def taking_bytes(name: str, folder: Path) -> str:
    """A bundled model that casts its input from bytes."""
    model = onnx.load(bundled_model(name))
    graph = model.graph
    names = {it.name for it in graph.initializer}
    (data,) = (it for it in graph.input if it.name not in names)
    cast = helper.make_node("Cast", ["image"], [data.name], to=TensorProto.FLOAT)
    graph.node.insert(0, cast)
    graph.input.remove(data)
    graph.input.insert(0, helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *_SHAPE]))
    del graph.output[1:]
    graph.node[-1].output[0], graph.output[0].name = "y", "y"
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return str(path)


def map_rate(path: str, num_rows: int, num_cores: int) -> tuple[float, np.ndarray[Any, Any]]:
    """Rows a second of engine.map, and the outputs of each image."""
    made = images()
    items = itertools.islice(itertools.cycle([[image[None]] for image in made]), num_rows)
    with Engine(
        path, scheduler="multi_stream", num_cores=num_cores, num_streams=num_cores
    ) as engine:
        expected = [engine.run([image[None]])[0] for image in made]
        began = time.perf_counter()
        count = sum(1 for _ in engine.map(items))
        return count / (time.perf_counter() - began), np.concatenate(expected)


def ray_rate(
    path: str, num_rows: int, workers: int, expected: np.ndarray[Any, Any], kills: bool
) -> tuple[float, float, str]:
    """Rows a second after the first answers, the seconds from the call to the last, and what is
    wrong with the rows."""
    made = ray.put(images())

    def with_images(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "image": ray.get(made)[batch["id"] % _NUM_IMAGES]}

    began = time.perf_counter()
    rows = ray.data.range(num_rows, override_num_blocks=max(1, num_rows // _ROWS))
    found = map_batches(
        rows.map_batches(with_images, batch_size=None, zero_copy_batch=True),
        path,
        outputs={"y": "scores"},
        keep=("id",),
        workers=workers,
        rows=_ROWS,
    )
    seen = np.zeros(num_rows, int)
    num_wrong = count = num_first = 0
    first = began
    for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
        ids, scores = batch["id"], batch["scores"]
        if count == 0:
            first, num_first = time.perf_counter(), len(ids)
        np.add.at(seen, ids, 1)
        close = np.isclose(scores, expected[ids % _NUM_IMAGES], rtol=1e-3, atol=1e-5)
        num_wrong += int((~close.reshape(len(ids), -1).all(1)).sum())
        count += len(ids)
        if kills and count > num_rows // 2:
            os.kill(min(it.pid for it in holders() if it.is_lease), signal.SIGKILL)
            kills = False
    ended = time.perf_counter()
    while any(it.is_lease for it in holders()):  # the cores are wanted next
        time.sleep(0.1)
    faults = {
        "missing": int((seen == 0).sum()),
        "repeated": int((seen > 1).sum()),
        "wrong": num_wrong,
        "killed nobody": int(kills),
    }
    text = ", ".join(f"{number} {what}" for what, number in faults.items() if number)
    return (count - num_first) / (ended - first), ended - began, text


def main() -> int:
    """Prints the figures. Returns 1 if one misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model", default="squeezenet", help="see deepsched.benchmark")
    parser.add_argument("--workers", type=int, default=2, help="of one core each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSCHED_LEASE_DIR"] = folder
        path = taking_bytes(args.model, Path(folder))
        # Ray counts what its readers take, too, which hold no cores.
        ray.init(num_cpus=args.workers + 2, include_dashboard=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        before, expected = map_rate(path, args.rows // 4, args.workers)
        rate, seconds, fault = ray_rate(path, args.rows, args.workers, expected, False)
        after, _ = map_rate(path, args.rows // 4, args.workers)
        mapped = (before + after) / 2
        print(f"engine.map, {args.workers} streams of 1 core: {before:.1f}, {after:.1f} rows/s")
        print(
            f"Ray Data, {args.workers} workers of 1 core: {rate:.1f} rows/s, "
            f"{rate / mapped:.3f} times; {args.rows} rows in {seconds:.0f} s with the start of "
            f"the workers; {fault or 'each row once, all right'}"
        )
        killed_rate, _, killed_fault = ray_rate(path, args.rows, args.workers, expected, True)
        print(
            f"with a worker killed halfway: {killed_rate:.1f} rows/s; "
            f"{killed_fault or 'each row once, all right'}"
        )
        ray.shutdown()
    return int(rate < _LEAST_RATE * mapped or bool(fault or killed_fault))


if __name__ == "__main__":
    sys.exit(main())
