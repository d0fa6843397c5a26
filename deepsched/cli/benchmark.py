"""`deepsched benchmark`: one scheduler under load, or both side by side."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deepsched.benchmark import Measurement, bundled_model, measure
from deepsched.engine import Engine, compile_model
from deepsched.errors import OptionError
from deepsched.scheduler import Scheduler
from deepsched.version import __version__


def add_parser(commands: Any) -> None:
    """Adds the subcommand; the flags are those of deepsparse.benchmark."""
    parser = commands.add_parser(
        "benchmark",
        help="measure throughput and latency of a model",
        description="Measures throughput and latency of a model under closed-loop load. Without "
        "MODEL: ResNet-50 from the onnx wheel, with both schedulers side by side.",
    )
    parser.add_argument("model_path", nargs="?", metavar="MODEL", help="path of an ONNX file")
    parser.add_argument(
        "-b", "--batch_size", type=int, default=1, help="items in a request (default 1)"
    )
    parser.add_argument(
        "-i", "-shapes", "--input_shapes", default="", metavar="SHAPES",
        help='shapes of the inputs, such as "[1,3,320,320]" or "[1,128],[1,128]"',
    )  # fmt: skip
    parser.add_argument(
        "-ncores", "--num_cores", type=int,
        help="physical cores to use (default: all that this process may use)",
    )  # fmt: skip
    parser.add_argument(
        "-nstreams", "--num_streams", type=int,
        help="requests that run side by side (default: one per L3 cache; without MODEL: two at "
        "least, if there are two cores)",
    )  # fmt: skip
    parser.add_argument(
        "-s", "--scenario", metavar="{sync,async,elastic}",
        help="sync: one caller on all cores; async, elastic: one caller for each stream "
        "(default async; without MODEL: both)",
    )  # fmt: skip
    parser.add_argument(
        "-t", "--time", type=float, default=10.0, help="seconds of each measurement (default 10)"
    )
    parser.add_argument(
        "-w", "--warmup_time", type=float, default=2.0, help="seconds before it (default 2)"
    )
    parser.add_argument(
        "-pin", "--thread_pinning", choices=["core", "none"], default="core",
        help="pin threads to their stream's cores, or leave them to the kernel (default core)",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "-x", "--export_path", metavar="FILE.json", help="write the results there as JSON"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    if args.time <= 0 or args.warmup_time < 0:
        raise OptionError(f"--time must be positive, got {args.time}; --warmup_time at least 0")
    shapes = _parse_shapes(args.input_shapes)
    with _export_file(args) as file:
        if args.model_path is None and args.scenario is None:
            result = _compare(args, shapes)
        else:
            result = _measure_one(args, shapes)
        if file is not None:
            json.dump(result, file, indent=2)
    if result["interrupted"]:
        raise KeyboardInterrupt


@contextmanager
def _export_file(args: argparse.Namespace) -> Iterator[TextIO | None]:
    """Opened before anything is measured: a path that cannot be written is known at once."""
    if not args.export_path:
        yield None
        return
    try:
        file = open(args.export_path, "w")  # noqa: SIM115
    except OSError as error:
        raise OptionError(f"cannot write --export_path {args.export_path!r}: {error}") from error
    with file:
        yield file


def _measure_one(args: argparse.Namespace, shapes: list[list[int]] | None) -> dict[str, Any]:
    model = args.model_path or bundled_model()
    scheduler = Scheduler.from_str(args.scenario or "async")
    with _compile(args, model, scheduler, args.num_streams, shapes) as engine:
        measurement = _load(args, engine, engine.num_streams, str(scheduler))
        report = _report(args, model, engine, measurement)
    print(f"Original Model Path: {model}")
    print(f"Batch Size: {report['batch_size']}")
    print(f"Scenario: {str(scheduler).replace('_', '')}")
    print(f"Cores, Streams: {report['num_cores']}, {report['num_streams']}")
    result = report["benchmark_result"]
    print(f"Throughput (items/sec): {result['items_per_sec']:.4f}")
    print(f"Latency Mean (ms/batch): {result['mean']:.4f}")
    print(f"Latency Median (ms/batch): {result['median']:.4f}")
    print(f"Latency Std (ms/batch): {result['std']:.4f}")
    for percent in (90.0, 95.0, 99.0):
        print(f"Latency p{percent:g} (ms/batch): {result[f'{percent}%']:.4f}")
    print(f"Iterations: {result['iterations']}")
    if measurement.is_interrupted:
        print(f"Interrupted after {measurement.seconds:.1f} of {args.time:g} seconds")
    return report


def _compare(args: argparse.Namespace, shapes: list[list[int]] | None) -> dict[str, Any]:
    """Both schedulers, with one caller and with as many as keep every stream busy."""
    model = bundled_model()
    with _compile(args, model, Scheduler.single_stream, None, shapes) as single:
        num_streams = args.num_streams
        if num_streams is None:
            default = len(single.context.topology.l3_groups) or 1
            num_streams = min(single.num_cores, max(2, default))
        with _compile(args, model, Scheduler.multi_stream, num_streams, shapes) as multi:
            reports = []
            for callers, engine in itertools.product((1, 2 * num_streams), (single, multi)):
                title = f"{engine.scheduler}, {callers} caller{'s' if callers > 1 else ''}"
                measurement = _load(args, engine, callers, title)
                reports.append(_report(args, model, engine, measurement))
                if measurement.is_interrupted:
                    break
    _print_table(model, reports)
    interrupted = reports[-1]["interrupted"]
    if interrupted:
        print("Interrupted: the last line was measured for a shorter time, others are missing.")
    return {"model_path": model, "measurements": reports, "interrupted": interrupted}


def _compile(
    args: argparse.Namespace,
    model: str,
    scheduler: Scheduler,
    num_streams: int | None,
    shapes: list[list[int]] | None,
) -> Engine:
    return compile_model(
        model, args.batch_size, args.num_cores, num_streams, scheduler, shapes,
        pin=args.thread_pinning,
    )  # fmt: skip


def _load(args: argparse.Namespace, engine: Engine, callers: int, title: str) -> Measurement:
    with _progress(args, title) as on_progress:
        return measure(
            engine.run,
            engine.generate_random_inputs(),
            callers=callers,
            seconds=args.time,
            warmup_seconds=args.warmup_time,
            batch_size=engine.batch_size or 1,
            on_progress=on_progress,
        )


@contextmanager
def _progress(args: argparse.Namespace, title: str) -> Iterator[Any]:
    console = Console(stderr=True)
    if args.quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=args.warmup_time + args.time)
        yield lambda seconds: progress.update(task, completed=seconds)


def _report(
    args: argparse.Namespace, model: str, engine: Engine, measurement: Measurement
) -> dict[str, Any]:
    """The keys of DeepSparse's export."""
    single = engine.scheduler == Scheduler.single_stream
    return {
        "engine": repr(engine),
        "version": __version__,
        "orig_model_path": model,
        "model_path": model,
        "batch_size": engine.batch_size,
        "input_shapes": args.input_shapes,
        "num_cores": engine.num_cores,
        "scenario": args.scenario or ("sync" if single else "async"),
        "scheduler": str(engine.scheduler),
        "seconds_to_run": args.time,
        "num_streams": engine.num_streams,
        "interrupted": measurement.is_interrupted,
        "benchmark_result": measurement.to_dict(),
    }


def _print_table(model: str, reports: list[dict[str, Any]]) -> None:
    cores = reports[0]["num_cores"]
    table = Table(title=f"{model.rsplit('/', 1)[-1]} on {cores} cores")
    for name in ("scheduler", "streams", "callers", "items/sec", "mean ms", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "scheduler" else "right")
    for report in reports:
        result = report["benchmark_result"]
        table.add_row(
            report["scheduler"],
            str(report["num_streams"]),
            str(result["callers"]),
            f"{result['items_per_sec']:.1f}",
            *(f"{result[key]:.2f}" for key in ("mean", "median", "90.0%", "99.0%")),
        )
    width = None if sys.stdout.isatty() else 100  # into a file: whole, not cut at 80
    Console(width=width).print(table)
    print(
        "Latency is of a whole call, waiting included. One caller: single_stream answers sooner.\n"
        "More callers: multi_stream answers more of them a second, where a model does not use all\n"
        "cores well by itself."
    )


def _parse_shapes(text: str) -> list[list[int]] | None:
    if not text:
        return None
    try:
        shapes = json.loads(f"[{text}]")
        if not all(isinstance(shape, list) for shape in shapes):
            raise ValueError("expected brackets around each shape")
    except ValueError as error:
        raise OptionError(
            f'--input_shapes must look like "[1,3,320,320]" or "[1,128],[1,128]", got {text!r} '
            f"({error})"
        ) from None
    return list(shapes)
