"""`deepsched benchmark`: its options, and which measurement they ask for."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from deepsched.benchmark import (
    AXES,
    ENGINES,
    Asked,
    OpenedEngine,
    bundled_model,
    combinations,
    measure,
    open_engine,
    search_rate,
    sweep,
)
from deepsched.benchmark.engines import EngineSetting
from deepsched.benchmark.plot import check_plot, plot_sweep
from deepsched.benchmark.report import SEARCH_FIELDS, report, report_search, report_sweep, write_csv
from deepsched.cli.benchmark_text import (
    fields_help,
    print_comparison,
    print_report,
    print_search,
    print_sweep,
)
from deepsched.cli.files import check_distinct, output, to_json
from deepsched.cli.help import HelpFormatter
from deepsched.cli.options import finite, parse_shapes, streams_to_compare
from deepsched.cli.progress import ProgressBar, progress_bar
from deepsched.errors import OptionError
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.models.prepare import sequence_shapes
from deepsched.scheduler import Scheduler
from deepsched.scheduling.scaling import widths

_DESCRIPTION = """\
Measures throughput and latency of a model under load. Without MODEL: ResNet-50 from the onnx
wheel; without --scenario or a load of your own as well, with both schedulers side by side.

Closed loop (the default): each of --callers threads sends the next request when its last one is
answered. Open loop (--rate): requests fall due at their own times, whatever the engine does, and
latency counts from then, so that a stall is seen by all that it delays. A request that no caller
could send within --time seconds of its being due is dropped and counted."""

_EPILOG = f"""\
engines:
  deepsched               the default; deepsparse means the same
  onnxruntime             plain onnxruntime: one session on all cores, which all callers call
  onnxruntime:per_stream  plain onnxruntime: one session for each stream; callers take idle ones
  openvino                OpenVINO in fp32, told the same cores and streams; needs
                          pip install 'deepsched[peers]'
  module:Class            a class of yours, or path/to/script.py:Class: Class(model_path,
                          batch_size, num_cores, num_streams, input_shapes), called with those
                          keywords that it takes; run(inputs), called from several threads. Inputs
                          are made up from generate_random_inputs(), inputs = [(name, shape,
                          dtype)], or MODEL

fields of the JSON, of the CSV, and of what is printed:
{fields_help()}
  With --sweep: `measurements`, a report for each combination with its values as `swept` (`error`
  where it cannot be had).

fields of `search`, with --p99-limit:
{fields_help(SEARCH_FIELDS)}

DeepSparse's scripts: all flags of deepsparse.benchmark are taken. Defaults differ where ours tell
more: --scenario is async (theirs: sync), --num_streams one per L3 cache (theirs: half the cores).
Models run as their files say, without a KV cache that the engine keeps: what sets one up is taken
and has no effect.

exit codes:
  0    measured
  2    arguments or a model that cannot be used
  130  Ctrl-C; what was measured so far is printed and written all the same
  141  nobody reads the output to its end, as with `| head`; files are written all the same

examples:
  deepsched benchmark model.onnx --rate 100 --poisson
  deepsched benchmark model.onnx --p99-limit 20
  deepsched benchmark model.onnx --sweep num_streams=1,2,4 --sweep batch_size=1,8 --csv out.csv
  deepsched benchmark model.onnx -e onnxruntime:per_stream --json
"""


_WITHOUT_EFFECT: dict[tuple[str, ...], dict[str, Any]] = {
    ("-input_ids_len", "--input_ids_length"): {"type": int, "metavar": "N"},
    ("--no-internal-kv-cache", "--no_internal_kv_cache"): {"action": "store_true"},
    ("--disable-kv-cache-overrides", "--disable_kv_cache_overrides"): {"action": "store_true"},
    ("--num-kv-cache-tokens", "--num_kv_cache_tokens"): {"type": int, "metavar": "N"},
}
"""DeepSparse's options of a KV cache: flags, and how they are parsed."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand; the flags of deepsparse.benchmark are among them."""
    parser = commands.add_parser(
        "benchmark",
        help="measure throughput and latency of a model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model_path", nargs="?", metavar="MODEL", help="path of an ONNX file")
    _add_engine_options(parser.add_argument_group("engine"))
    _add_load_options(parser.add_argument_group("load"))
    _add_output_options(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def _add_engine_options(group: Any) -> None:
    group.add_argument(
        "-b", "--batch_size", type=int, default=1, help="items in a request (default 1)"
    )
    group.add_argument(
        "-i",
        "-shapes",
        "--input_shapes",
        "--input_shape",
        default="",
        metavar="SHAPES",
        help='shapes of the inputs, such as "[1,3,320,320]" or "[1,128],[1,128]"',
    )
    group.add_argument(
        "-ncores",
        "--num_cores",
        type=int,
        help="physical cores to use (default: all that this process may use)",
    )
    group.add_argument(
        "-nstreams",
        "--num_streams",
        type=int,
        help="requests that run side by side (default: one per L3 cache, where DeepSparse's is "
        "half the cores; without MODEL: two at least, if there are two cores)",
    )
    group.add_argument(
        "-s",
        "--scenario",
        metavar="{sync,async,elastic}",
        help="sync: single_stream, one caller on all cores; async: multi_stream, one caller for "
        "each stream; elastic: as many callers (default async, where DeepSparse's is sync; without "
        "MODEL: both). The schedulers' names do too; the JSON says singlestream and multistream, "
        "as DeepSparse's",
    )
    group.add_argument(
        "-pin",
        "--thread_pinning",
        choices=["core", "numa", "none"],
        default="core",
        help="pin deepsched's threads to their stream's cores, or leave them to the kernel "
        "(default core); numa means core: streams keep to NUMA nodes by themselves",
    )
    group.add_argument(
        "-seq_len",
        "--sequence_length",
        type=int,
        metavar="N",
        help="the second dimension of inputs that leave it open; those of --input_shapes otherwise",
    )
    for flags, options in _WITHOUT_EFFECT.items():
        group.add_argument(
            *flags, **options, help="no effect: there is no KV cache that the engine keeps"
        )
    group.add_argument(
        "-e",
        "--engine",
        default="deepsched",
        metavar="ENGINE",
        help=f"{', '.join(ENGINES)}; see below (default deepsched)",
    )


def _add_load_options(group: Any) -> None:
    group.add_argument(
        "-t", "--time", type=finite, default=10.0, help="seconds of each measurement (default 10)"
    )
    group.add_argument(
        "-w", "--warmup_time", type=finite, default=2.0, help="seconds before it (default 2)"
    )
    group.add_argument(
        "--callers",
        type=int,
        metavar="N",
        help="threads that call; in an open loop at most so many requests are under way (default: "
        "one for each stream; open loop: four for each, 16 at least)",
    )
    group.add_argument(
        "--rate", type=finite, metavar="R", help="open loop: R requests a second, evenly spaced"
    )
    group.add_argument(
        "--poisson", action="store_true", help="at random times instead, as of independent users"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of these times; the same seed, the same times"
    )
    group.add_argument(
        "--p99-limit",
        type=finite,
        metavar="MS",
        help="search the highest rate at which 99 of 100 requests are answered within MS; each "
        "step takes --time",
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="OPTION=V1,V2",
        help=f"measure each of these values ({', '.join(AXES)}); again for another option: "
        "every combination. Without values, OPTION or OPTION,OPTION: batch sizes 1, 4, 16, of the "
        "others powers of two up to what this machine has",
    )


def _add_output_options(group: Any) -> None:
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    group.add_argument("--json", action="store_true", help="print the result as JSON instead")
    group.add_argument(
        "-x", "--export_path", metavar="FILE.json", help="write the results there as JSON"
    )
    group.add_argument("--csv", metavar="FILE", help="write a line for each measurement there")
    group.add_argument(
        "--plot",
        metavar="FILE",
        help="draw throughput and latency over the first --sweep; .png, .svg or .pdf; "
        "pip install 'deepsched[plot]'",
    )


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    axes = _parse_sweep(args)
    _check(args, axes)
    _say_what_has_no_effect(args)
    _make_custom_engine_importable(args.engine)
    # Opened before anything is measured: a path that cannot be written is known at once.
    with (
        ExitStack() as at_end,
        output(args, "export_path") as export,
        output(args, "csv") as table,
    ):
        with progress_bar(args.quiet) as bar:
            result, show = _measure(args, axes, bar)
        text = to_json(result)
        # After the files: a reader that leaves does not take them away.
        at_end.callback(*((print, text) if args.json else (show, result)))
        if export is not None:
            export.write(text)
        if table is not None:
            write_csv(result.get("measurements", [result]), table)
    if result["interrupted"]:
        raise KeyboardInterrupt


def _make_custom_engine_importable(engine: str) -> None:
    """Puts the working folder, where a custom class usually lies, in sys.path, as `python -m` does.

    For the `deepsched` script, which has its own folder there. Here and not in `open_engine`:
    sys.path belongs to the program, not to a library.
    """
    if ":" in engine and engine not in ENGINES and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _say_what_has_no_effect(args: argparse.Namespace) -> None:
    if args.thread_pinning == "numa":
        print("-pin numa: as core; streams keep to NUMA nodes by themselves", file=sys.stderr)
    values = {flags[-1]: getattr(args, flags[-1].removeprefix("--")) for flags in _WITHOUT_EFFECT}
    given = [flag for flag, value in values.items() if value is not None and value is not False]
    if given:
        print(
            f"{', '.join(given)}: no effect; there is no KV cache that the engine keeps",
            file=sys.stderr,
        )


def _check(args: argparse.Namespace, axes: Mapping[str, Sequence[Any]]) -> None:
    if args.time <= 0 or args.warmup_time < 0:
        raise OptionError(
            f"--time must be positive, got {args.time:g}, and --warmup_time 0 or more, got "
            f"{args.warmup_time:g}"
        )
    if args.seed < 0:
        raise OptionError(f"--seed must be 0 or more, got {args.seed}")
    if args.sequence_length is not None:
        if args.sequence_length < 1:
            raise OptionError(f"--sequence_length must be 1 or more, got {args.sequence_length}")
        if args.input_shapes:
            raise OptionError("--sequence_length and --input_shapes both say how large inputs are")
    if args.callers is not None and args.callers < 1:
        raise OptionError(f"--callers must be at least 1, got {args.callers}")
    if args.rate is not None and args.rate <= 0:
        raise OptionError(f"--rate must be positive, got {args.rate}")
    if args.p99_limit is not None:
        if args.p99_limit <= 0:
            raise OptionError(f"--p99-limit must be positive, got {args.p99_limit}")
        if args.rate is not None or axes:
            raise OptionError(
                "--p99-limit searches the rate itself, for one engine; give it without --rate and "
                "--sweep"
            )
    if args.poisson and args.rate is None and args.p99_limit is None and "rate" not in axes:
        raise OptionError("--poisson is for an open loop; give --rate or --p99-limit with it")
    if args.plot:
        if not axes:
            raise OptionError("--plot draws a sweep; give --sweep num_streams=1,2 or the like")
        check_plot(args.plot)
    check_distinct(args, "export_path", "csv", "plot")


# --- What is measured ---------------------------------------------------------------------------

Result = dict[str, Any]
Shown = tuple[Result, Callable[[Result], None]]


def _measure(
    args: argparse.Namespace, axes: Mapping[str, Sequence[Any]], bar: ProgressBar
) -> Shown:
    if axes:
        return _sweep(args, axes, bar), print_sweep
    if args.p99_limit is not None:
        return _search(args, bar), print_search
    is_plain = args.engine == "deepsched" and args.rate is None
    if args.model_path is None and args.scenario is None and is_plain:
        return _compare(args, bar), print_comparison
    return _measure_one(args, bar), print_report


def _measure_one(args: argparse.Namespace, bar: ProgressBar) -> Result:
    with _open(args) as engine:
        return _load(args, engine, args.callers, _title(args), bar)


def _search(args: argparse.Namespace, bar: ProgressBar) -> Result:
    def on_step(rate: float | None) -> None:
        title = "closed loop" if rate is None else f"{rate:.4g} requests/sec"
        bar.begin(title, args.time + args.warmup_time)

    options = _load_options(args)
    del options["rate"]
    with _open(args) as engine:
        found = search_rate(
            engine, p99_limit_ms=args.p99_limit, on_step=on_step, on_progress=bar.update, **options
        )
        return report_search(_asked(args), EngineSetting.of(engine), found)


def _sweep(args: argparse.Namespace, axes: Mapping[str, Sequence[Any]], bar: ProgressBar) -> Result:
    each = args.time + args.warmup_time
    total = len(combinations(axes))
    number = itertools.count()
    done = 0.0

    def on_point(values: Mapping[str, Any]) -> None:
        nonlocal done
        done = next(number) * each
        bar.update(done)
        bar.describe(" ".join(f"{axis}={value}" for axis, value in values.items()))

    bar.begin("", total * each)
    result = sweep(
        _model(args),
        axes,
        engine=args.engine,
        on_point=on_point,
        open_with=_opener(args),
        on_progress=lambda seconds: bar.update(done + seconds),
        **_engine_options(args),
        **_load_options(args),
    )
    if not any(point.measurement for point in result.points):
        raise next(point.error for point in result.points if point.error)
    if args.plot:
        plot_sweep(result, args.plot)
    return report_sweep(_asked(args), result)


def _compare(args: argparse.Namespace, bar: ProgressBar) -> Result:
    """Both schedulers, with one caller and with as many as keep every stream busy."""
    with _open(args, scheduler=Scheduler.single_stream, num_streams=None) as single:
        num_streams = args.num_streams
        if num_streams is None:
            num_streams = streams_to_compare(args.num_cores)
        with _open(args, scheduler=Scheduler.multi_stream, num_streams=num_streams) as multi:
            reports: list[Result] = []
            loads = (1, 2 * num_streams) if args.callers is None else (args.callers,)
            interrupted = False
            for callers, engine in itertools.product(loads, (single, multi)):
                name = EngineSetting.of(engine).scheduler
                title = f"{name}, {callers} caller{'s' if callers > 1 else ''}"
                try:
                    reports.append(_load(args, engine, callers, title, bar))
                except KeyboardInterrupt:  # in its warm-up
                    if not reports:
                        raise
                    interrupted = True
                if interrupted := interrupted or reports[-1]["interrupted"]:
                    break
    return {"model_path": _model(args), "measurements": reports, "interrupted": interrupted}


def _load(
    args: argparse.Namespace,
    engine: OpenedEngine,
    callers: int | None,
    title: str,
    bar: ProgressBar,
) -> Result:
    bar.begin(title, args.time + args.warmup_time)
    options = {**_load_options(args), "callers": callers}
    measurement = measure(engine, on_progress=bar.update, **options)
    return report(_asked(args), EngineSetting.of(engine), measurement)


@contextmanager
def _open(args: argparse.Namespace, **changes: Any) -> Iterator[OpenedEngine]:
    options = {**_engine_options(args), **changes}
    with closing(_opener(args)(args.engine, _model(args), **options)) as engine:
        yield engine


def _opener(args: argparse.Namespace) -> Callable[..., OpenedEngine]:
    """`open_engine`, with the shapes that --sequence_length makes of a batch size."""
    if args.sequence_length is None:
        return open_engine

    def opened(name: str, model_path: str, **options: Any) -> OpenedEngine:
        shapes = sequence_shapes(model_path, options["batch_size"], args.sequence_length)
        return open_engine(name, model_path, **{**options, "input_shapes": shapes})

    return opened


# --- What the options mean ----------------------------------------------------------------------


def _model(args: argparse.Namespace) -> str:
    return args.model_path or bundled_model()


def _title(args: argparse.Namespace) -> str:
    return args.engine if args.rate is None else f"{args.engine}, {args.rate:g} requests/sec"


def _asked(args: argparse.Namespace) -> Asked:
    return Asked(
        _model(args),
        _scheduler(args),
        parse_shapes(args.input_shapes),
        args.time,
        args.sequence_length,
    )


def _scheduler(args: argparse.Namespace) -> Scheduler:
    return Scheduler.from_str(args.scenario or "async")


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "batch_size": args.batch_size,
        "num_cores": args.num_cores,
        "num_streams": args.num_streams,
        "scheduler": _scheduler(args),
        "input_shapes": parse_shapes(args.input_shapes),
        "pin": "none" if args.thread_pinning == "none" else "core",
    }


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "callers": args.callers,
        "rate": args.rate,
        "poisson": args.poisson,
        "seed": args.seed,
        "seconds": args.time,
        "warmup_seconds": args.warmup_time,
    }


def _parse_sweep(args: argparse.Namespace) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in args.sweep:
        names, has_values, values = text.partition("=")
        try:
            for axis in [names] if has_values else names.split(","):
                if axis not in AXES or axis in axes:
                    raise ValueError(f"expected one of {', '.join(AXES)}, each once")
                kind = finite if axis == "rate" else int
                axes[axis] = (
                    [kind(value) for value in values.split(",")]
                    if has_values
                    else _default_values(args, axis)
                )
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise OptionError(
                f"--sweep must look like num_streams=1,2,4, got {text!r} ({error})"
            ) from None
    return axes


def _default_values(args: argparse.Namespace, axis: str) -> list[int]:
    """What an axis goes over if it is not told."""
    if axis == "batch_size":
        return [1, 4, 16]
    if axis == "rate":
        raise ValueError("rate needs values: any may be what you are after")
    most = most_cores(Topology.detect(), args.num_cores)
    return widths(2 * most if axis == "callers" else most)
