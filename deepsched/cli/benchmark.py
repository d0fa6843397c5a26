"""`deepsched benchmark`: its options, and the measurement that they ask for."""

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
from deepsched.benchmark.measurement import Measurement
from deepsched.benchmark.plot import check_plot, plot_sweep
from deepsched.benchmark.report import (
    SEARCH_FIELDS,
    report,
    report_search,
    report_sweep,
    report_together,
    write_csv,
)
from deepsched.cli.benchmark_text import (
    fields_help,
    print_comparison,
    print_report,
    print_search,
    print_sweep,
)
from deepsched.cli.console import only_errors
from deepsched.cli.files import check_distinct, output, to_json
from deepsched.cli.options import (
    add_batching,
    add_custom_ops,
    add_load,
    add_model,
    add_num_cores,
    add_num_streams,
    add_option,
    add_output,
    add_rewrites,
    add_seconds,
    add_sizes,
    finite,
    parse_shapes,
    streams_to_compare,
)
from deepsched.cli.progress import ProgressBar, progress_bar
from deepsched.client.engine import TENSORS, open_server
from deepsched.errors import OptionError
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.models.prepare import sequence_shapes
from deepsched.scheduler import Scheduler
from deepsched.scheduling.scaling import widths

_DESCRIPTION = """\
Measures throughput and latency of a model under load. Without MODEL it takes ResNet-50 from the
onnx wheel. Without --scheduler, --rate, --sweep and --p99-limit it compares both schedulers: with
one caller, and with two per stream.

Closed loop (the default): each of --callers threads sends its next request when the last one is
answered. Open loop (--rate): requests arrive on a fixed schedule, however slow the engine is, and
latency counts from the scheduled arrival, so a stall shows in every request that it delays
(no coordinated omission). A request that no caller could send within --seconds of its arrival is
dropped and counted.

With --server the model is one behind a server that speaks the Open Inference Protocol v2: this
project's, Triton, KServe, MLServer, OpenVINO Model Server or another. What is measured then is what
its client sees."""

_EPILOG = f"""\
engines:
  deepsched               the default; deepsparse is an alias
  onnxruntime             plain onnxruntime: one session on all cores, shared by all callers
  onnxruntime:per_stream  plain onnxruntime: one session per stream; callers take idle ones
  openvino                OpenVINO in fp32, on the same cores and streams; needs
                          pip install 'deepsched[peers]'
  module:Class            your own class, or path/to/script.py:Class: Class(model_path, batch_size,
                          num_cores, num_streams, input_shapes), called with the keywords that it
                          accepts; run(inputs), called from several threads. Inputs come from
                          generate_random_inputs(), or are random for inputs = [(name, shape,
                          dtype)], or for MODEL

fields of the JSON, of the CSV, and of the printed report:
{fields_help()}
  With --sweep: `measurements`, a report for each combination with its values as `swept` (`error`
  where it failed). Where both schedulers are compared: `measurements`, a report for each scheduler
  and number of callers; the fields beside it are the last one's, of multi_stream.

fields of `search`, with --p99-limit:
{fields_help(SEARCH_FIELDS)}

DeepSparse's scripts: all flags of deepsparse.benchmark work, also those that the list above leaves
out, such as -x, -ncores, -seq_len, --scenario, --time. Two defaults differ: --scheduler is
both (theirs: sync), --num-streams one per L3 cache, and at least two without --scheduler (theirs:
half the cores). Models run as their files say, without a KV cache inside the engine; flags that
configure one have no effect.

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a model that cannot be used
  130  Ctrl-C; what was measured so far is still printed and written
  141  output pipe closed early, as with `| head`; files are still written

examples:
  deepsched benchmark model.onnx --rate 100 --poisson
  deepsched benchmark model.onnx --p99-limit 20
  deepsched benchmark model.onnx --sweep num_streams=1,2,4 --sweep batch_size=1,8 --csv out.csv
  deepsched benchmark model.onnx -e onnxruntime:per_stream --json
  deepsched benchmark --server http://localhost:8000 -m model --callers 4
  deepsched benchmark --server grpc://localhost:8001 -m model --rate 100 --poisson
"""


_WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "--input-ids-length": {"hidden": ["-input_ids_len"], "type": int},
    "--no-internal-kv-cache": {"action": "store_true"},
    "--disable-kv-cache-overrides": {"action": "store_true"},
    "--num-kv-cache-tokens": {"type": int},
}
"""DeepSparse's flags for its KV cache; taken, and left out of the help."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options; deepsparse.benchmark's flags are among them."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    add_model(parser)
    _add_engine_options(parser.add_argument_group("engine"))
    _add_server_options(parser.add_argument_group("server"))
    _add_load_options(parser.add_argument_group("load"))
    _add_output_options(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def _add_engine_options(group: argparse._ActionsContainer) -> None:
    add_sizes(group)
    add_custom_ops(group)
    add_rewrites(group)
    add_batching(group)
    add_num_cores(group)
    add_num_streams(
        group,
        "requests that run in parallel (default: one per L3 cache; without --scheduler: at least "
        "two, if there are two cores)",
    )
    add_option(
        group,
        "-s",
        "--scheduler",
        hidden=["--scenario"],
        metavar="NAME",
        help="single_stream (or sync): one caller, on all cores; multi_stream (or async): one "
        "caller per stream; elastic: as many callers (default: both are compared; with --rate, "
        "--sweep, --p99-limit or another engine: multi_stream). "
        "In the JSON they have DeepSparse's names, singlestream and multistream",
    )
    add_option(
        group,
        "--pin",
        hidden=["-pin", "--thread-pinning", "--thread_pinning"],
        dest="thread_pinning",
        choices=["auto", "core", "numa", "none"],
        default="auto",
        help="core: threads are pinned to the cores of their stream; none: the kernel places them; "
        "auto, the default: core, if the system allows it; numa: the same as core, since streams "
        "respect NUMA nodes anyway",
    )
    add_option(
        group,
        "--sequence-length",
        hidden=["-seq_len"],
        type=int,
        metavar="N",
        help="second dimension of inputs that leave it open; for others use --input-shapes",
    )
    for flag, options in _WITHOUT_EFFECT.items():
        add_option(group, flag, **options, help=argparse.SUPPRESS)
    group.add_argument(
        "-e",
        "--engine",
        default="deepsched",
        metavar="ENGINE",
        help=f"{', '.join(ENGINES)}; see below (default deepsched)",
    )


def _add_server_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--server",
        metavar="URL",
        help="measure a server: http://HOST:PORT or https://, REST; grpc://HOST:PORT, gRPC. "
        "--batch-size and --input-shapes say what is sent; options of the engine are the server's",
    )
    group.add_argument(
        "-m", "--model", metavar="NAME", help="a model there (default: the only one it has)"
    )
    add_option(
        group, "--model-version", default="", metavar="V", help="default: the server's choice"
    )
    group.add_argument(
        "--tensors",
        choices=TENSORS,
        default="binary",
        help="binary: raw bytes, in REST by Triton's extension; json: REST's lists of numbers "
        "(default binary)",
    )


def _add_load_options(group: argparse._ActionsContainer) -> None:
    add_seconds(group, 10.0, "length of each measurement")
    add_option(
        group,
        "-w",
        "--warmup-time",
        type=finite,
        default=2.0,
        metavar="S",
        help="seconds of the same load before it (default 2)",
    )
    add_load(
        group,
        "calling threads; in an open loop this bounds the requests in flight (default: one per "
        "stream; open loop: four per stream, at least 16)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random arrivals: the same seed gives the same times (default 0)",
    )
    add_option(
        group,
        "--p99-limit",
        type=finite,
        metavar="MS",
        help="find the highest rate whose p99 latency stays within MS; each step takes --seconds, "
        "in which 300 requests must arrive",
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="OPTION=V1,V2",
        help=f"measure each of these values ({', '.join(AXES)}); repeat for another option: "
        "measures every combination. Without values, as OPTION or OPTION,OPTION: batch sizes 1, "
        "4, 16; for the others powers of two up to what this machine has",
    )


def _add_output_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no progress bar, no warnings from the log"
    )
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    add_output(group, "write the result there as JSON")
    group.add_argument("--csv", metavar="FILE", help="write a row for each measurement there")
    group.add_argument(
        "--plot",
        metavar="FILE",
        help="plot throughput and latency over the first --sweep; .png, .svg or .pdf; needs "
        "pip install 'deepsched[plot]'",
    )


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    axes = _parse_sweep(args)
    _check(args, axes)
    _warn_of_flags_without_effect(args)
    _make_custom_engine_importable(args.engine)
    # Opened before the measurement: a path that cannot be written fails at once.
    with (
        ExitStack() as at_end,
        only_errors(args.quiet),
        output(args, "output") as export,
        output(args, "csv") as table,
    ):
        with progress_bar(args.quiet) as bar:
            result, show = _measure(args, axes, bar)
        text = to_json(result)
        # After the files, so that a closed output pipe does not lose them.
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


def _warn_of_flags_without_effect(args: argparse.Namespace) -> None:
    if args.thread_pinning == "numa":
        print(
            "--pin numa: the same as core; streams respect NUMA nodes anyway",
            file=sys.stderr,
        )
    values = {flag: getattr(args, flag[2:].replace("-", "_")) for flag in _WITHOUT_EFFECT}
    given = [flag for flag, value in values.items() if value is not None and value is not False]
    if given:
        print(f"{', '.join(given)}: no effect; the engine has no KV cache", file=sys.stderr)


def _check(args: argparse.Namespace, axes: Mapping[str, Sequence[Any]]) -> None:
    if args.seconds <= 0 or args.warmup_time < 0:
        raise OptionError(
            f"--seconds must be positive, got {args.seconds:g}, and --warmup-time 0 or more, got "
            f"{args.warmup_time:g}"
        )
    if args.seed < 0:
        raise OptionError(f"--seed must be 0 or more, got {args.seed}")
    if args.sequence_length is not None:
        if args.sequence_length < 1:
            raise OptionError(f"--sequence-length must be 1 or more, got {args.sequence_length}")
        if args.input_shapes:
            raise OptionError(
                "--sequence-length and --input-shapes both set the sizes of inputs; give one"
            )
    if args.callers is not None and args.callers < 1:
        raise OptionError(f"--callers must be at least 1, got {args.callers}")
    if args.rate is not None and args.rate <= 0:
        raise OptionError(f"--rate must be positive, got {args.rate}")
    if args.p99_limit is not None:
        if args.p99_limit <= 0:
            raise OptionError(f"--p99-limit must be positive, got {args.p99_limit}")
        if args.rate is not None or axes:
            raise OptionError(
                "--p99-limit searches for the rate, with one engine; leave out --rate and --sweep"
            )
    if args.poisson and args.rate is None and args.p99_limit is None and "rate" not in axes:
        raise OptionError("--poisson needs an open loop: give --rate or --p99-limit too")
    _check_server(args, axes)
    if args.plot:
        if not axes:
            raise OptionError("--plot draws a sweep: give --sweep num_streams=1,2, for example")
        check_plot(args.plot)
    check_distinct(args, "output", "csv", "plot")


_OF_THE_ENGINE = {
    "model_path": "MODEL",
    "num_cores": "--num-cores",
    "num_streams": "--num-streams",
    "scheduler": "--scheduler",
    "custom_ops": "--custom-ops",
    "sequence_length": "--sequence-length",
}
"""What says how a model is opened here, and its flag."""


def _check_server(args: argparse.Namespace, axes: Mapping[str, Sequence[Any]]) -> None:
    if args.server is None:
        if args.model or args.model_version:
            raise OptionError("--model and --model-version name a model of --server; give that too")
        return
    given = [flag for name, flag in _OF_THE_ENGINE.items() if getattr(args, name)]
    given += [f"--sweep {axis}" for axis in axes if axis not in ("batch_size", "callers", "rate")]
    if args.engine != "deepsched":
        given.append("--engine")
    if given:
        raise OptionError(f"{', '.join(given)}: with --server that is the server's; leave it out")


# --- The measurements -------------------------------------------------------------------------

Result = dict[str, Any]
Shown = tuple[Result, Callable[[Result], None]]


def _measure(
    args: argparse.Namespace, axes: Mapping[str, Sequence[Any]], bar: ProgressBar
) -> Shown:
    if axes:
        return _sweep(args, axes, bar), print_sweep
    if args.p99_limit is not None:
        return _search(args, bar), print_search
    is_ours = args.server is None and args.engine in ("deepsched", "deepsparse")
    if is_ours and args.scheduler is None and args.rate is None:
        return _compare(args, bar), print_comparison
    return _measure_one(args, bar), print_report


def _measure_one(args: argparse.Namespace, bar: ProgressBar) -> Result:
    with _open(args) as engine:
        return report(_asked(args), *_load(args, engine, args.callers, _title(args), bar))


def _search(args: argparse.Namespace, bar: ProgressBar) -> Result:
    def on_step(rate: float | None) -> None:
        title = "closed loop" if rate is None else f"{rate:.4g} requests/sec"
        bar.begin(title, args.seconds + args.warmup_time)

    options = _load_options(args)
    del options["rate"]
    with _open(args) as engine:
        found = search_rate(
            engine, p99_limit_ms=args.p99_limit, on_step=on_step, on_progress=bar.update, **options
        )
        return report_search(_asked(args), EngineSetting.of(engine), found)


def _sweep(args: argparse.Namespace, axes: Mapping[str, Sequence[Any]], bar: ProgressBar) -> Result:
    each = args.seconds + args.warmup_time
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
    """Both schedulers, with one caller and with enough callers to keep every stream busy."""
    with (
        _open(args, scheduler=Scheduler.single_stream, num_streams=None) as single,
        _open(args, scheduler=Scheduler.multi_stream) as multi,
    ):
        measured: list[tuple[EngineSetting, Measurement]] = []
        loads = (1, 2 * (multi.num_streams or 1)) if args.callers is None else (args.callers,)
        interrupted = False
        for callers, engine in itertools.product(loads, (single, multi)):
            name = EngineSetting.of(engine).scheduler
            title = f"{name}, {callers} caller{'s' if callers > 1 else ''}"
            try:
                measured.append(_load(args, engine, callers, title, bar))
            except KeyboardInterrupt:  # in its warm-up
                if not measured:
                    raise
                interrupted = True
            if interrupted := interrupted or measured[-1][1].is_interrupted:
                break
    reports = report_together(_asked(args), measured)
    # Scripts that were written for DeepSparse's JSON read one report.
    return {**reports[-1], "measurements": reports, "interrupted": interrupted}


def _load(
    args: argparse.Namespace,
    engine: OpenedEngine,
    callers: int | None,
    title: str,
    bar: ProgressBar,
) -> tuple[EngineSetting, Measurement]:
    bar.begin(title, args.seconds + args.warmup_time)
    options = {**_load_options(args), "callers": callers}
    return EngineSetting.of(engine), measure(engine, on_progress=bar.update, **options)


@contextmanager
def _open(args: argparse.Namespace, **changes: Any) -> Iterator[OpenedEngine]:
    options = {**_engine_options(args), **changes}
    with closing(_opener(args)(args.engine, _model(args), **options)) as engine:
        yield engine


def _opener(args: argparse.Namespace) -> Callable[..., OpenedEngine]:
    """`open_engine`, with options that depend on those of each combination of a sweep; or
    `open_server`."""

    def opened_remote(name: str, model_path: str, **options: Any) -> OpenedEngine:
        return open_server(
            args.server,
            args.model,
            args.model_version,
            tensors=args.tensors,
            batch_size=options["batch_size"],
            input_shapes=options["input_shapes"],
        )

    def opened(name: str, model_path: str, **options: Any) -> OpenedEngine:
        if args.sequence_length is not None:
            options["input_shapes"] = sequence_shapes(
                model_path, options["batch_size"], args.sequence_length
            )
        is_multi_stream = options["scheduler"] == Scheduler.multi_stream
        if args.scheduler is None and is_multi_stream and options["num_streams"] is None:
            # Of one stream, where all cores share an L3 cache, it would be single_stream.
            options["num_streams"] = streams_to_compare(options["num_cores"])
        return open_engine(name, model_path, **options)

    return opened if args.server is None else opened_remote


# --- From options to arguments ----------------------------------------------------------------


def _model(args: argparse.Namespace) -> str:
    return args.server or args.model_path or bundled_model()


def _title(args: argparse.Namespace) -> str:
    name = args.server or args.engine
    return name if args.rate is None else f"{name}, {args.rate:g} requests/sec"


def _asked(args: argparse.Namespace) -> Asked:
    return Asked(
        _model(args),
        _scheduler(args),
        parse_shapes(args.input_shapes),
        args.seconds,
        args.sequence_length,
    )


def _scheduler(args: argparse.Namespace) -> Scheduler:
    return Scheduler.from_str(args.scheduler or "multi_stream")


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "batch_size": args.batch_size,
        "num_cores": args.num_cores,
        "num_streams": args.num_streams,
        "scheduler": _scheduler(args),
        "input_shapes": parse_shapes(args.input_shapes),
        "custom_ops": args.custom_ops,
        "rewrites": args.rewrites,
        "batching": args.batching,
        "pin": "core" if args.thread_pinning == "numa" else args.thread_pinning,
    }


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "callers": args.callers,
        "rate": args.rate,
        "poisson": args.poisson,
        "seed": args.seed,
        "seconds": args.seconds,
        "warmup_seconds": args.warmup_time,
    }


def _parse_sweep(args: argparse.Namespace) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    for text in args.sweep:
        names, has_values, values = text.partition("=")
        names = names.replace("-", "_")  # --sweep num-streams=1,2, as the flag is spelled
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
    """The values of an axis that was given none."""
    if axis == "batch_size":
        return [1, 4, 16]
    if axis == "rate":
        raise ValueError("rate has no default values")
    most = most_cores(Topology.detect(), args.num_cores)
    return widths(2 * most if axis == "callers" else most)
