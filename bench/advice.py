"""Is the advice good? What `advise` recommends, against the best of all settings.

    python -m bench.advice [--models squeezenet,encoder] [--callers N | --rate R] [--rounds 7]

For each model the recommended setting and every other (each scheduler, each number of cores, each
number of streams) take turns under the load; what counts are medians over the rounds in the
commonest state of the machine, in which all were measured ("mixed" if there is none). `share` is
what the recommendation reached of the best: 0.95 is the goal. The best of several equal settings is
the luckiest, so that a share a little below 1 is to be expected. Exits with 1 if more than one
model misses the goal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.elastic import make_encoder
from deepsched import Context, Engine
from deepsched.advice import Setting, advise
from deepsched.advice.choosing import Load
from deepsched.advice.states import Results, comparable, split
from deepsched.benchmark import Measurement, bundled_model, measure

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
ENCODERS = {
    "encoder": {},
    "encoder_minilm": {"layers": 6, "width": 384, "heads": 12, "length": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join((*LIGHT, *ENCODERS)))
    parser.add_argument("--callers", type=int, help="load, as for deepsched advise")
    parser.add_argument("--rate", type=float, help="load, as for deepsched advise")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a setting in a round")
    parser.add_argument("-x", dest="file", help="write what was measured as JSON")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models.split(","):
            model = bundled_model(name) if name in LIGHT else _encoder(name, folder)
            results.append({"model": name, **_judge(model, args)})
            row = results[-1]
            print(f"{name}: {row['recommended']}, {row['share']:.3f} of {row['best']}", flush=True)
    if args.file:
        Path(args.file).write_text(json.dumps(results, indent=2))
    table = Table("model", "state", "recommended", "the best", "share", "advise took")
    for row in results:
        table.add_row(
            row["model"],
            row["state"],
            row["recommended"],
            row["best"],
            f"{row['share']:.3f}",
            f"{row['advise_seconds']:.0f} s",
        )
    Console().print(table)
    good = sum(row["share"] >= 0.95 for row in results)
    print(f"{good} of {len(results)} within 5 % of the best")
    sys.exit(0 if good >= len(results) - 1 else 1)


def _encoder(name: str, folder: str) -> str:
    path = Path(folder, f"{name}.onnx")
    path.write_bytes(make_encoder(**ENCODERS[name]))
    return str(path)


def _judge(model: str, args: argparse.Namespace) -> dict[str, Any]:
    advice = advise(
        model, callers=args.callers, rate=args.rate, remembers=False, compares_batches=False
    )
    settings = _all_settings()
    if advice.setting not in settings:
        settings.append(advice.setting)
    if args.callers is None and args.rate is None:
        load = Load(2 * _num_cores(), None)
    else:
        load = Load(args.callers, args.rate)
    results: Results = {setting: (1, []) for setting in settings}
    for number in range(args.rounds):
        # Each round begins elsewhere: none always follows the same one.
        turn = number % len(settings)
        for setting in settings[turn:] + settings[:turn]:
            results[setting][1].append(_measure(model, setting, load, args.seconds))
    states = split(results)
    compared = comparable(results)
    medians = {
        setting: statistics.median(_cost(it, load) for it in compared[setting][1])
        for setting in settings
    }
    best = min(medians, key=lambda setting: medians[setting])
    return {
        "state": next(iter(states), "mixed"),
        "recommended": str(advice.setting),
        "best": str(best),
        "share": medians[best] / medians[advice.setting],
        "advise_seconds": advice.seconds,
        "medians": {str(setting): value for setting, value in medians.items()},
    }


def _all_settings() -> list[Setting]:
    cores = _num_cores()
    settings = [Setting("elastic", None, None)]
    settings += [
        Setting("single_stream", None, None if count == cores else count)
        for count in range(1, cores + 1)
    ]
    return settings + [Setting("multi_stream", count, None) for count in range(2, cores + 1)]


def _num_cores() -> int:
    with Context(scheduler="single_stream") as context:
        return context.num_cores


def _measure(model: str, setting: Setting, load: Load, seconds: float) -> Measurement:
    with Engine(model, 1, setting.num_cores, setting.num_streams, setting.scheduler) as engine:
        return measure(
            engine,
            callers=load.callers,
            rate=load.rate,
            poisson=load.rate is not None,
            seconds=seconds,
            warmup_seconds=0.1 * seconds,
        )


def _cost(measured: Measurement, load: Load) -> float:
    """What the load wants little of: ms of latency, or seconds for an item."""
    if load.rate is not None:
        return float(np.mean(measured.latencies_ms))
    return measured.percentile(50) if load.callers == 1 else 1 / measured.items_per_sec


if __name__ == "__main__":
    main()
