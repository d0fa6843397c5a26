"""What a benchmark reports: the fields and their units, as JSON and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from deepsched.benchmark.measurement import Measurement
from deepsched.models.prepare import Shapes
from deepsched.scheduler import Scheduler
from deepsched.version import __version__

if TYPE_CHECKING:
    from deepsched.benchmark.engines import OpenedEngine
    from deepsched.benchmark.search import RateSearch
    from deepsched.benchmark.sweep import Point, Sweep

FIELDS: dict[str, tuple[str, str]] = {
    "engine": ("text", "the engine and how it was told to run"),
    "version": ("text", "deepsched's"),
    "orig_model_path": ("path", "MODEL"),
    "model_path": ("path", "the same; DeepSparse's is where a download lies"),
    "batch_size": ("items", "in a request"),
    "input_shapes": ("list", "--input-shapes; null: the model's"),
    "sequence_length": ("items", "--sequence-length; null: the model's"),
    "num_cores": ("cores", "physical ones that the engine was told to use"),
    "scenario": ("text", "singlestream, multistream or elastic; in benchmark_result once more"),
    "scheduler": ("text", "deepsched's; null for other engines"),
    "seconds_to_run": ("s", "--seconds"),
    "num_streams": ("streams", "requests that run side by side"),
    "fraction_of_supported_ops": (
        "share",
        "of the operators, that the engine runs by kernels of "
        "its own: 1.0, ONNX Runtime has them all; null for other engines",
    ),
    "interrupted": ("bool", "whether Ctrl-C ended it early"),
    "callers": ("threads", "that call at once; in an open loop at most"),
    "items_per_sec": ("items/s", "throughput: iterations * batch_size / seconds_ran"),
    "seconds_ran": ("s", "the time measured; in an open loop until the last answer"),
    "iterations": ("requests", "answered in that time"),
    "mean, median, std": (
        "ms",
        "latency of a request, waiting included; open loop: from the time it was due",
    ),
    "25.0% ... 99.9%": ("ms", "percentiles of the same: so many requests took no longer"),
    "max": ("ms", "the longest of the same"),
    "rate": ("requests/s", "that fell due; null: closed loop"),
    "poisson": ("bool", "whether they fell due at random times"),
    "dropped": (
        "requests",
        "due so long before a caller was free that they were not sent; no latency counts them",
    ),
    "keeps_up": (
        "bool",
        "open loop: whether no more than 1 % was dropped, and latency did not "
        "grow from quarter to quarter of the load, by more than 3 % of the time in all; closed "
        "loop: true",
    ),
    "send_delay_ms": (
        "ms",
        "open loop: from the time it was due until it was sent, part of the latency",
    ),
    "waiting_ms": (
        "ms",
        "from the call until the run began, by deepsched's own count; null for "
        "other engines; to 2 %",
    ),
    "running_ms": ("ms", "inside ONNX Runtime, in the same way"),
    "streams": (
        "list",
        "of each stream: requests answered, inline (on the caller's thread) and "
        "by_worker, busy_fraction of the time",
    ),
    "cpu_seconds_per_item": ("s", "CPU time of the process for an item, the callers' included"),
    "peak_memory_bytes": (
        "bytes",
        "most memory resident during the load, warm-up included; of the whole process",
    ),
    "throttled_seconds": (
        "s",
        "that the cgroup's CPU quota kept its threads from running, summed "
        "over CPUs; null: unknown",
    ),
    "others_share": (
        "share",
        "of the CPUs that this process may use, taken by other processes, "
        "0 to 1: with more than a little the figures are unsure; null: unknown",
    ),
}
"""Field -> (unit, meaning), of the JSON; those of benchmark_result from `callers` on."""

SEARCH_FIELDS: dict[str, tuple[str, str]] = {
    "p99_limit_ms": ("ms", "--p99-limit"),
    "rate": ("requests/s", "the highest that held; 0.0: none did"),
    "closed_loop_rate": ("requests/s", "with a caller for each stream, where the search began"),
    "steps": ("list", "of each rate that was tried, in this order:"),
    "steps[].rate": ("requests/s", "that fell due"),
    "steps[].p99_ms": (
        "ms",
        "99th percentile of the latency of all that fell due; null: more than 1 % was dropped",
    ),
    "steps[].dropped": ("requests", "that could not be sent within the limit"),
    "steps[].keeps_up": ("bool", "see above"),
    "steps[].is_held": ("bool", "keeps_up, and p99_ms within the limit"),
}
"""The same, of `search`."""


class Setting(NamedTuple):
    """What an engine was told."""

    engine: str
    batch_size: int | None
    num_cores: int
    num_streams: int
    scheduler: Scheduler | None

    @classmethod
    def of(cls, engine: OpenedEngine) -> Setting:
        """What `engine` was told."""
        return cls(
            repr(engine),
            engine.batch_size,
            engine.num_cores,
            engine.num_streams,
            getattr(engine, "scheduler", None),
        )


class Asked(NamedTuple):
    """What the user asked for, as far as it is reported."""

    model_path: str
    scheduler: Scheduler
    input_shapes: Shapes | None
    seconds: float
    sequence_length: int | None = None


def report(asked: Asked, setting: Setting, measurement: Measurement) -> dict[str, Any]:
    """The keys of DeepSparse's export, and ours; for JSON."""
    is_ours = setting.scheduler is not None
    # DeepSparse's word; other engines have no scheduler to tell.
    scenario = str(setting.scheduler or asked.scheduler).replace("_", "")
    return {
        "engine": setting.engine,
        "version": __version__,
        "orig_model_path": asked.model_path,
        "model_path": asked.model_path,
        "batch_size": setting.batch_size,
        "input_shapes": asked.input_shapes,
        "sequence_length": asked.sequence_length,
        "num_cores": setting.num_cores,
        "scenario": scenario,
        "scheduler": None if setting.scheduler is None else str(setting.scheduler),
        "seconds_to_run": asked.seconds,
        "num_streams": setting.num_streams,
        "fraction_of_supported_ops": 1.0 if is_ours else None,
        "interrupted": measurement.is_interrupted,
        "benchmark_result": {"scenario": scenario, **measurement.to_dict()},
    }


def report_sweep(asked: Asked, sweep: Sweep) -> dict[str, Any]:
    """A report for each combination, with its values as `swept`; `error` where there is none."""

    def of_point(point: Point) -> dict[str, Any]:
        if point.measurement is None or point.setting is None:
            return {"swept": point.values, "error": str(point.error)}
        return {"swept": point.values, **report(asked, point.setting, point.measurement)}

    return {
        "model_path": asked.model_path,
        "sweep": {axis: list(values) for axis, values in sweep.axes.items()},
        "measurements": [of_point(point) for point in sweep.points],
        "interrupted": sweep.is_interrupted,
    }


def report_search(asked: Asked, setting: Setting, search: RateSearch) -> dict[str, Any]:
    """The report of the highest rate that held, if there was one, and `search`."""
    found = {} if search.measurement is None else report(asked, setting, search.measurement)
    return {
        "engine": setting.engine,
        "model_path": asked.model_path,
        **found,
        "interrupted": search.is_interrupted,
        "search": {
            "p99_limit_ms": search.p99_limit_ms,
            "rate": search.rate,
            "closed_loop_rate": search.closed_loop_rate,
            "steps": [
                {
                    "rate": step.rate,
                    "p99_ms": step.p99_ms if step.p99_ms < float("inf") else None,
                    "dropped": step.num_dropped,
                    "keeps_up": step.keeps_up,
                    "is_held": step.is_held,
                }
                for step in search.steps
            ],
        },
    }


def write_csv(reports: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """A line for each report; columns are named as in the JSON, `waiting_ms.99.0%` for example."""
    rows = [flatten(each) for each in reports]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def flatten(report: Mapping[str, Any]) -> dict[str, Any]:
    """Without nesting: parts of a part by a dot, lists of parts as words.

    >>> flatten({"benchmark_result": {"mean": 2.5, "streams": [{"requests": 3}, {"requests": 4}]}})
    {'mean': 2.5, 'streams.requests': '3 4'}
    """
    row: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            # These two add nothing to the names below them.
            prefix = "" if name in ("benchmark_result", "swept") else f"{name}."
            row |= {f"{prefix}{key}": each for key, each in flatten(value).items()}
        elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
            for key in dict.fromkeys(key for each in value for key in each):
                row[f"{name}.{key}"] = " ".join(str(each[key]) for each in value)
        else:
            row[name] = value
    return row
