"""The report of a benchmark as JSON and CSV: its fields, and their units."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from deepsched.benchmark.engines import EngineSetting
from deepsched.benchmark.measurement import Measurement
from deepsched.benchmark.search import RateSearch
from deepsched.benchmark.sweep import Point, Sweep
from deepsched.formatting import csv_cell
from deepsched.machine.state import states_of
from deepsched.models.prepare import Shapes
from deepsched.scheduler import Scheduler
from deepsched.version import __version__

FIELDS: dict[str, tuple[str, str]] = {
    "engine": ("text", "the engine and its configuration"),
    "version": ("text", "deepsched's"),
    "orig_model_path": ("path", "MODEL, or --server"),
    "model_path": ("path", "the same; in DeepSparse the path of the downloaded file"),
    "batch_size": ("items", "in a request"),
    "input_shapes": ("list", "--input-shapes; null: the model's"),
    "sequence_length": ("items", "--sequence-length; null: the model's"),
    "num_cores": (
        "cores",
        "physical cores that the engine was told to use; null: a server's, as num_streams",
    ),
    "scenario": ("text", "singlestream, multistream or elastic; in benchmark_result once more"),
    "scheduler": ("text", "deepsched's; null for other engines"),
    "seconds_to_run": ("s", "--seconds"),
    "num_streams": ("streams", "requests that run in parallel"),
    "batching": (
        "text",
        "whether requests that wait run together, up to how many items, or why not; null for other "
        "engines",
    ),
    "fraction_of_supported_ops": (
        "share",
        "of the operators that the engine has kernels for: 1.0, ONNX Runtime has them all; null "
        "for other engines",
    ),
    "interrupted": ("bool", "whether Ctrl-C ended the measurement early"),
    "state": (
        "text",
        "of the machine: the distance of the cores (of several measurements near or far, if there "
        "were two), and whether others used them; null: it changed meanwhile, or was not seen. "
        "Figures of different states do not compare",
    ),
    "callers": ("threads", "calling threads; in an open loop the limit of requests in flight"),
    "items_per_sec": ("items/s", "throughput: iterations * batch_size / seconds_ran"),
    "seconds_ran": (
        "s",
        "length of the measurement, from answer to answer; in an open loop until the last one",
    ),
    "iterations": ("requests", "answered during the measurement"),
    "mean, median, std": (
        "ms",
        "latency of a request, time in the queue included; open loop: from its arrival",
    ),
    "25.0% ... 99.9%": (
        "ms",
        "percentiles of the latency of all that arrived, iterations + dropped; the 90th takes 30 "
        "of them, the 99th 300, the 99.9th 3000; null: so many were dropped; median likewise",
    ),
    "max": ("ms", "the highest latency of an answered request"),
    "rate": ("requests/s", "arrival rate (offered load); null: closed loop"),
    "poisson": ("bool", "whether arrivals were a Poisson process"),
    "dropped": (
        "requests",
        "not sent, since no caller was free in time; infinitely late in the percentiles, not part "
        "of mean and std",
    ),
    "keeps_up": (
        "bool",
        "open loop: whether at most 1 % was dropped, and latency did not grow from quarter to "
        "quarter of the load by more than 3 % of the time in all; closed loop: true",
    ),
    "send_delay_ms": (
        "ms",
        "open loop: from the arrival until the request was sent; part of the latency. count: "
        "of how many requests",
    ),
    "waiting_ms": (
        "ms",
        "from the call until the run began, from deepsched's own statistics, to 2 %; count: of "
        "how many requests; null for other engines",
    ),
    "running_ms": ("ms", "inside ONNX Runtime, likewise"),
    "streams": (
        "list",
        "for each stream: requests answered, of which inline (on the caller's thread) and "
        "by_worker; busy_fraction of the time",
    ),
    "cpu_seconds_per_item": (
        "s",
        "CPU time of the process per item, the callers' included; with --server only theirs, "
        "likewise in the fields that follow",
    ),
    "peak_memory_bytes": (
        "bytes",
        "peak resident memory of the process during the load, warm-up included",
    ),
    "throttled_seconds": (
        "s",
        "that the cgroup's CPU quota throttled the process, summed over CPUs; null: unknown",
    ),
    "others_share": (
        "share",
        "CPU contention: of the time of the worst CPU in use, used by other processes, 0 to 1, at "
        "least; from 0.1 on the figures are unreliable; null: unknown",
    ),
    "steal_share": (
        "share",
        "of the worst CPU's time, stolen by the hypervisor; part of others_share; null: this "
        "machine counts none",
    ),
    "core_trips_before_ns": (
        "ns",
        "round trip of a cache line between neighbours among the cores in use, just before the "
        "warm-up, of up to 16 pairs; null: others kept one busy",
    ),
    "core_trips_after_ns": ("ns", "the same just after the load"),
}
"""JSON field -> (unit, meaning). From `callers` on, fields of `benchmark_result`."""

SEARCH_FIELDS: dict[str, tuple[str, str]] = {
    "p99_limit_ms": ("ms", "--p99-limit"),
    "rate": ("requests/s", "the highest rate that held; 0.0: none held"),
    "lowest_rate": ("requests/s", "none below it was tried: in --seconds 300 requests must arrive"),
    "closed_loop_rate": (
        "requests/s",
        "closed-loop throughput with one caller per stream, where the search began",
    ),
    "steps": ("list", "the rates that were tried, in this order:"),
    "steps[].rate": ("requests/s", "arrival rate"),
    "steps[].p99_ms": (
        "ms",
        "99th percentile of the latency of all arrivals; null: more than 1 % was dropped",
    ),
    "steps[].requests": ("requests", "that arrived: of how many p99_ms is"),
    "steps[].dropped": ("requests", "of these, not sent within the limit"),
    "steps[].keeps_up": ("bool", "see above"),
    "steps[].is_held": ("bool", "keeps_up, and p99_ms within the limit"),
}
"""The same, for `search`."""


class Asked(NamedTuple):
    """The options of the user that a report repeats."""

    model_path: str
    scheduler: Scheduler
    input_shapes: Shapes | None
    seconds: float
    sequence_length: int | None = None


def report(asked: Asked, setting: EngineSetting, measurement: Measurement) -> dict[str, Any]:
    """The report of one measurement, ready for JSON: DeepSparse's keys, and ours."""
    is_ours = setting.scheduler is not None
    # DeepSparse writes "singlestream"; other engines have no scheduler, but were asked for one.
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
        "batching": setting.batching,
        "fraction_of_supported_ops": 1.0 if is_ours else None,
        "interrupted": measurement.is_interrupted,
        "state": _state_names([measurement])[0],
        "benchmark_result": {"scenario": scenario, **measurement.to_dict()},
    }


def report_together(
    asked: Asked, measured: Sequence[tuple[EngineSetting, Measurement]]
) -> list[dict[str, Any]]:
    """Reports of measurements that are to be compared: their states have names in common."""
    states = _state_names([measurement for _, measurement in measured])
    return [
        {**report(asked, *each), "state": state}
        for each, state in zip(measured, states, strict=True)
    ]


def _state_names(measurements: Sequence[Measurement]) -> list[str | None]:
    """A measurement whose conditions were not looked at has no name."""
    seen = [it.conditions for it in measurements if it.conditions is not None]
    states = iter(states_of(seen))
    found = [next(states) if it.conditions is not None else None for it in measurements]
    return [None if state is None else str(state) for state in found]


def report_sweep(asked: Asked, sweep: Sweep) -> dict[str, Any]:
    """A report for each combination, with its values as `swept`; `error` if it failed."""

    reports = iter(
        report_together(
            asked,
            [(it.setting, it.measurement) for it in sweep.points if it.setting and it.measurement],
        )
    )

    def of_point(point: Point) -> dict[str, Any]:
        if point.measurement is None or point.setting is None:
            return {"swept": point.values, "error": str(point.error)}
        return {"swept": point.values, **next(reports)}

    return {
        "model_path": asked.model_path,
        "sweep": {axis: list(values) for axis, values in sweep.axes.items()},
        "measurements": [of_point(point) for point in sweep.points],
        "interrupted": sweep.is_interrupted,
    }


def report_search(asked: Asked, setting: EngineSetting, search: RateSearch) -> dict[str, Any]:
    """The report of the highest rate that held, if any, and the search as `search`."""
    found = {} if search.measurement is None else report(asked, setting, search.measurement)
    return {
        "engine": setting.engine,
        "model_path": asked.model_path,
        **found,
        "interrupted": search.is_interrupted,
        "search": {
            "p99_limit_ms": search.p99_limit_ms,
            "rate": search.rate,
            "lowest_rate": search.lowest_rate,
            "closed_loop_rate": search.closed_loop_rate,
            "steps": [
                {
                    "rate": step.rate,
                    "p99_ms": step.p99_ms if step.p99_ms < float("inf") else None,
                    "requests": step.num_requests,
                    "dropped": step.num_dropped,
                    "keeps_up": step.keeps_up,
                    "is_held": step.is_held,
                }
                for step in search.steps
            ],
        },
    }


def write_csv(reports: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Writes a line for each report; columns are `flatten`ed names, such as `waiting_ms.99.0%`."""
    write_rows([flatten(each) for each in reports], file)


def write_rows(rows: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Writes a header with every row's names, and the rows, as CSV."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)


def flatten(report: Mapping[str, Any]) -> dict[str, Any]:
    """A nested report as one row: nested names joined by dots, lists by spaces.

    >>> flatten({"benchmark_result": {"mean": 2.5, "streams": [{"requests": 3}, {"requests": 4}]}})
    {'mean': 2.5, 'streams.requests': '3 4'}
    """
    row: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            # The names in these two are unique without a prefix.
            prefix = "" if name in ("benchmark_result", "swept") else f"{name}."
            row |= {f"{prefix}{key}": each for key, each in flatten(value).items()}
        elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
            for key in dict.fromkeys(key for each in value for key in each):
                row[f"{name}.{key}"] = " ".join(str(each[key]) for each in value)
        else:
            row[name] = value
    return row
