"""A benchmark's report as text: DeepSparse's lines, and tables."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.measure import Measurement
from rich.table import Table

from deepsched.benchmark.percentiles import requests_for
from deepsched.benchmark.report import FIELDS
from deepsched.cli.console import Console
from deepsched.formatting import printable, rounded
from deepsched.machine.contention import contention_notes

Report = Mapping[str, Any]


def fields_help(fields: Mapping[str, tuple[str, str]] = FIELDS) -> str:
    """The fields and their units, for --help."""
    lines = []
    for name, (unit, meaning) in fields.items():
        first, *rest = textwrap.wrap(meaning, 58)
        lines += [f"  {name:<25} {unit:<11} {first}", *(" " * 40 + line for line in rest)]
    return "\n".join(lines)


def print_report(report: Report) -> None:
    """Prints DeepSparse's lines in its order, ours between and after them."""
    result = report["benchmark_result"]
    # DeepSparse prints the values of --scenario, but exports other names.
    scenario = {"singlestream": "sync", "multistream": "async"}
    print(f"Original Model Path: {printable(report['orig_model_path'])}")
    print(f"Batch Size: {report['batch_size']}")
    if report["sequence_length"] is not None:
        print(f"Sequence Length: {report['sequence_length']}")
    is_remote = report["num_cores"] is None
    if not is_remote:
        print(f"Scenario: {scenario.get(report['scenario'], report['scenario'])}")
    if report["scheduler"] is None:
        print(f"Engine: {printable(report['engine'])}")
    if not is_remote:
        print(f"Cores, Streams: {report['num_cores']}, {report['num_streams']}")
    if report.get("batching") is not None:
        print(f"Batching: {printable(report['batching'])}")
    print(f"Callers: {result['callers']}")
    print(f"Time (sec): {result['seconds_ran']:.1f}")
    num_arrived = result["iterations"] + result["dropped"]
    if result["rate"] is not None:
        times = "Poisson arrivals" if result["poisson"] else "evenly spaced"
        print(f"Offered Load (requests/sec): {result['rate']:.4f}, {times}")
        print(f"Answered: {result['iterations']} of {num_arrived} requests that arrived")
    print(f"Throughput (items/sec): {result['items_per_sec']:.4f}")
    print(f"Latency Mean (ms/batch): {result['mean']:.4f}")
    print(f"Latency Median (ms/batch): {_exact(result['median'])}")
    print(f"Latency Std (ms/batch): {result['std']:.4f}")
    for percent in (50.0, 90.0, 95.0, 99.0, 99.9):
        few = num_arrived < requests_for(percent)
        print(
            f"Latency p{percent:g} (ms/batch): {_exact(result[f'{percent}%'])}"
            + f" (of {num_arrived} requests; it takes {requests_for(percent)})" * few
        )
    for name, times in (("Waiting", "waiting_ms"), ("Running", "running_ms")):
        if result[times]:
            median, p99 = result[times]["50.0%"], result[times]["99.0%"]
            count = result[times]["count"]
            few = f" (of {count} requests)" if count < requests_for(99) else ""
            print(f"{name} Median, p99 (ms/batch): {median:.4f}, {p99:.4f}{few}")
    print(f"Iterations: {result['iterations']}")
    if result["streams"]:
        counts = ", ".join(str(stream["requests"]) for stream in result["streams"])
        print(f"Requests by Stream: {counts}")
    own = "Client's " if is_remote else ""
    if result["cpu_seconds_per_item"] is not None:
        print(f"{own}CPU Time (ms/item): {result['cpu_seconds_per_item'] * 1e3:.4f}")
    print(f"{own}Peak Memory (MB): {result['peak_memory_bytes'] / 1e6:.1f}")
    if result["throttled_seconds"]:
        print(f"Throttled by the CPU Quota (sec): {result['throttled_seconds']:.4f}")
    if not is_remote:  # a server on this machine is one of the others
        state = report["state"] or "changed, or not seen"
        print(f"State, by the Round Trip between Cores: {state}")
        for note in contention_notes(result["others_share"], result["steal_share"]):
            print(f"Note: {note}")
    if result["dropped"]:
        print(f"Dropped: {result['dropped']} requests; the offered load exceeds the capacity")
    elif not result["keeps_up"]:
        print("Falls Behind: latency grows for as long as the load lasts; it exceeds the capacity")
    if report["interrupted"]:
        ran, wanted = result["seconds_ran"], report["seconds_to_run"]
        print(f"Interrupted after {ran:.1f} of {wanted:g} seconds")


def print_comparison(result: Report) -> None:
    """Prints both schedulers side by side."""
    reports = result["measurements"]
    name = result["model_path"].rsplit("/", 1)[-1]
    table = _table(
        f"{name} on {reports[0]['num_cores']} cores",
        (*_SETTING, "requests", "items/sec", "mean ms", *_PERCENTILES, "state"),
    )
    for report in reports:
        numbers = report["benchmark_result"]
        table.add_row(
            report["scheduler"],
            str(report["num_streams"]),
            str(numbers["callers"]),
            str(numbers["iterations"]),
            f"{numbers['items_per_sec']:.1f}",
            rounded(numbers["mean"]),
            *_percentiles(numbers),
            report["state"] or "?",
        )
    _print(table)
    _explain_marks(reports)
    _explain_states(reports)
    print("Latency is that of a whole call, time in the queue included.")
    for line in _comparison(reports):
        print(line)
    _print_contention(reports)
    if result["interrupted"]:
        print("Interrupted: the last line was measured for a shorter time; others are missing.")


def _print_contention(reports: Sequence[Report]) -> None:
    """What was worst in any of them."""

    def worst(field: str) -> float | None:
        shares = [report["benchmark_result"][field] for report in reports if "error" not in report]
        return max((share for share in shares if share is not None), default=None)

    for note in contention_notes(worst("others_share"), worst("steal_share")):
        print(note)


def _comparison(reports: Sequence[Report]) -> Iterator[str]:
    """The best scheduler for one caller, and for many, by figures of one state."""
    lone = [report for report in reports if report["benchmark_result"]["callers"] == 1]
    if len(lone) > 1 and not _are_alike(lone):
        yield f"With 1 caller, {_NO_COMPARISON}"
    elif len(lone) > 1:
        first = min(lone, key=lambda report: report["benchmark_result"]["median"])
        yield f"With 1 caller, {first['scheduler']} has the lowest latency."
    most = max(report["benchmark_result"]["callers"] for report in reports)
    crowd = [report for report in reports if report["benchmark_result"]["callers"] == most]
    if most > 1 and len(crowd) > 1 and not _are_alike(crowd):
        yield f"With {most} callers, {_NO_COMPARISON}"
    elif most > 1 and len(crowd) > 1:
        first = max(crowd, key=lambda report: report["benchmark_result"]["items_per_sec"])
        yield f"With {most} callers, {first['scheduler']} has the highest throughput."


_NO_COMPARISON = "the figures are of different states of the machine: measure again to compare."


def _are_alike(reports: Sequence[Report]) -> bool:
    """Whether all are of one state."""
    return len({report["state"] for report in reports}) == 1 and reports[0]["state"] is not None


def print_sweep(result: Report) -> None:
    """Prints a row for each combination."""
    axes = list(result["sweep"])
    is_remote = all(report.get("num_cores") is None for report in result["measurements"])
    columns = [*axes, "requests", "items/sec", "mean ms", *_PERCENTILES, *_COSTS]
    if not is_remote:
        columns.append("state")
    table = _table(result["model_path"].rsplit("/", 1)[-1], columns)
    failed = []
    for report in result["measurements"]:
        values = [str(report["swept"][axis]) for axis in axes]
        if "error" in report:
            table.add_row(*values, *["-"] * (len(columns) - len(axes)))
            named = ", ".join(f"{axis}={value}" for axis, value in report["swept"].items())
            failed.append(f"{named}: {report['error']}")
            continue
        numbers = report["benchmark_result"]
        cpu = numbers["cpu_seconds_per_item"]
        table.add_row(
            *values,
            str(numbers["iterations"]),
            f"{numbers['items_per_sec']:.1f}",
            rounded(numbers["mean"]),
            *_percentiles(numbers),
            "-" if cpu is None else rounded(cpu * 1e3),
            f"{numbers['peak_memory_bytes'] / 1e6:.0f}",
            *([] if is_remote else [report["state"] or "?"]),
        )
    _print(table)
    _explain_marks(result["measurements"])
    if not is_remote:
        _explain_states(result["measurements"])
    for line in failed:
        print(line)
    if not is_remote:  # a server on this machine is one of the others
        _print_contention(result["measurements"])
    if result["interrupted"]:
        print("Interrupted: the last line may be of a shorter time; others are missing.")


def print_search(result: Report) -> None:
    """The rates that were tried, and the report of the highest one that held."""
    search = result["search"]
    table = _table(
        "rates tried", ("requests/sec", "requests", "p99 ms", "dropped", "keeps up", "held")
    )
    for step in search["steps"]:
        table.add_row(
            f"{step['rate']:.2f}",
            str(step["requests"]),
            "-" if step["p99_ms"] is None else rounded(step["p99_ms"]),
            str(step["dropped"]),
            *("yes" if step[name] else "no" for name in ("keeps_up", "is_held")),
        )
    _print(table)
    if "benchmark_result" in result:
        print_report({**result, "interrupted": False})  # the search was, not this measurement
    limit = f"{search['p99_limit_ms']:g} ms"
    print(f"Highest Rate with p99 within {limit} (requests/sec): {search['rate']:.4f}")
    if result["interrupted"]:
        print("Interrupted: a higher rate may hold")
    elif not search["rate"]:
        print(
            f"No rate of {search['lowest_rate']:.4g} requests/sec or more held. Either a lone "
            "request takes longer than the limit, or a lower rate holds; a p99 takes 300 requests, "
            "so trying it takes more --seconds"
        )


# Columns of the tables.
_SETTING = ("scheduler", "streams", "callers")
_COSTS = ("CPU ms/item", "peak MB")
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


def _percentiles(numbers: Report) -> Iterator[str]:
    num_arrived = numbers["iterations"] + numbers["dropped"]
    for percent in _PERCENTILES.values():
        value = numbers[f"{percent}%"]
        mark = "~" if num_arrived < requests_for(percent) else ""
        yield "dropped" if value is None else mark + rounded(value)


def _explain_states(reports: Sequence[Report]) -> None:
    """What the column "state" says, and what does not compare."""
    states = [report["state"] for report in reports if "error" not in report]
    known = dict.fromkeys(state for state in states if state is not None)
    if len(known) > 1:
        print(
            "The machine was in several states, told by the round trip between its cores and by "
            "what others used of them. Compare only figures of one state; measure again until all "
            "are of one."
        )
    if None in states:
        print("?: the state changed meanwhile, or was not seen: this compares with nothing.")


def _explain_marks(reports: Sequence[Report]) -> None:
    every = [report["benchmark_result"] for report in reports if "error" not in report]
    cells = [cell for numbers in every for cell in _percentiles(numbers)]
    if any(cell.startswith("~") for cell in cells):
        needed = ", ".join(f"{name} {requests_for(p)}" for name, p in _PERCENTILES.items())
        print(f"~: of fewer requests than the percentile takes ({needed}).")
    if "dropped" in cells:
        print("dropped: so many requests were dropped that the percentile is infinite.")


def _exact(milliseconds: float | None) -> str:
    return "infinite, by dropped requests" if milliseconds is None else f"{milliseconds:.4f}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "scheduler" else "right")
    return table


def _print(table: Table) -> None:
    # As wide as it takes: a narrow terminal breaks its lines, where rich would cut figures off.
    console = Console(width=None if sys.stdout.isatty() else 120)
    unbounded = console.options.update(max_width=10_000)
    needed = Measurement.get(console, unbounded, table).maximum
    Console(width=max(console.width, needed)).print(table)
