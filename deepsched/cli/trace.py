"""`deepsched trace`: a timeline of requests under load."""

from __future__ import annotations

import argparse
import shutil
from contextlib import ExitStack, closing

from deepsched.benchmark import bundled_model, measure
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
    parse_shapes,
    streams_to_compare,
)
from deepsched.cli.progress import ProgressBar, progress_bar
from deepsched.engine import Engine
from deepsched.errors import OptionError
from deepsched.scheduler import Scheduler
from deepsched.timeline import Trace
from deepsched.timeline.perfetto import to_perfetto
from deepsched.timeline.svg import draw
from deepsched.timeline.text import render

_EPILOG = """\
In the picture each box is a request, by its number, on the cores that it ran on. The timeline (-o)
is for https://ui.perfetto.dev and chrome://tracing:

  load         queue depth, busy cores
  streams      a track per stream, a slice per run
  core groups  a track per group of streams that requests took together (elastic)
  waiting      a slice per request, from the call until its run began
  arguments    request: its number; batch: its items; outcome: done, failed, expired, cancelled or
               closed; ran: inline (on the calling thread) or on a worker; waited_ms

Traces of several schedulers share one timeline; each begins at 0.

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a model that cannot be used
  130  Ctrl-C; what was traced so far is still printed and written
  141  output pipe closed early, as with `| head`; files are still written

examples:
  deepsched trace model.onnx --svg streams.svg
  deepsched trace model.onnx -s elastic --rate 100 --poisson -o trace.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Puts a load on MODEL and draws which cores served which request, and when. Without "
        "--scheduler: single_stream and multi_stream, one below the other. In your own program, "
        "Context.trace() does the same."
    )
    parser.epilog = _EPILOG
    add_model(parser)
    add_output(parser, "write a timeline there")
    parser.add_argument("--svg", metavar="FILE.svg", help="write the picture there")
    parser.add_argument("--json", action="store_true", help="print the timeline as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    engine = parser.add_argument_group("engine")
    add_option(
        engine,
        "-s",
        "--scheduler",
        hidden=["--scenario"],
        default="single_stream,multi_stream",
        metavar="NAME[,NAME]",
        help="single_stream (or sync), multi_stream (or async), elastic; several, separated by "
        "commas (default single_stream,multi_stream)",
    )
    add_sizes(engine)
    add_custom_ops(engine)
    add_rewrites(engine)
    add_batching(engine)
    add_num_cores(engine)
    add_num_streams(
        engine,
        "requests that run in parallel with multi_stream and elastic (default: one per L3 cache, "
        "at least two if there are two cores; elastic: one per core)",
    )
    load = parser.add_argument_group("load")
    add_seconds(load, 2.0, "length of each trace")
    add_load(
        load,
        "calling threads (default: one more than there are streams; open loop: see `deepsched "
        "benchmark -h`)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Traces and draws."""
    if args.seconds <= 0:
        raise OptionError(f"--seconds must be positive, got {args.seconds}")
    if args.poisson and args.rate is None:
        raise OptionError("--poisson needs an open loop: give --rate too")
    schedulers = [Scheduler.from_str(name) for name in args.scheduler.split(",")]
    check_distinct(args, "output", "svg")
    with (
        ExitStack() as at_end,
        output(args, "output") as timeline,
        output(args, "svg") as picture,
    ):
        traces, is_interrupted = _traces(args, schedulers)
        is_wanted = args.json or timeline is not None
        text = to_json(to_perfetto(traces), indent=None) if is_wanted else ""
        shown = text if args.json else render(traces, shutil.get_terminal_size().columns)
        # After the files, so that a closed output pipe does not lose them.
        at_end.callback(print, shown)
        if timeline is not None:
            timeline.write(text)
        if picture is not None:
            picture.write(draw(traces))
    if is_interrupted:
        raise KeyboardInterrupt


def _traces(args: argparse.Namespace, schedulers: list[Scheduler]) -> tuple[list[Trace], bool]:
    """A trace for each scheduler, and whether Ctrl-C cut them short."""
    traces: list[Trace] = []
    is_interrupted = False
    with progress_bar(args.quiet) as bar:
        for scheduler in schedulers:
            bar.begin(str(scheduler), args.seconds)
            try:
                trace, is_interrupted = _trace(args, scheduler, bar)
            except KeyboardInterrupt:
                if not traces:
                    raise
                return traces, True
            traces.append(trace)
            if is_interrupted:
                break
    return traces, is_interrupted


def _trace(args: argparse.Namespace, scheduler: Scheduler, bar: ProgressBar) -> tuple[Trace, bool]:
    with closing(_open(args, scheduler)) as engine:
        inputs = engine.generate_random_inputs()
        engine.run(inputs)
        with engine.context.trace() as trace:
            result = measure(
                engine,
                inputs,
                callers=_callers(args, engine),
                rate=args.rate,
                poisson=args.poisson,
                seconds=args.seconds,
                warmup_seconds=0,
                on_progress=bar.update,
            )
    return trace, result.is_interrupted


def _open(args: argparse.Namespace, scheduler: Scheduler) -> Engine:
    num_streams = None if scheduler == Scheduler.single_stream else args.num_streams
    if scheduler == Scheduler.multi_stream and num_streams is None:
        num_streams = streams_to_compare(args.num_cores)
    return Engine(
        args.model_path or bundled_model(),
        args.batch_size,
        args.num_cores,
        num_streams,
        scheduler,
        parse_shapes(args.input_shapes),
        custom_ops=args.custom_ops,
        rewrites=args.rewrites,
        batching=args.batching,
    )


def _callers(args: argparse.Namespace, engine: Engine) -> int | None:
    if args.callers is None and args.rate is None:
        return engine.num_streams + 1
    callers: int | None = args.callers
    return callers
