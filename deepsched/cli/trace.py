"""`deepsched trace`: a timeline of requests under load."""

from __future__ import annotations

import argparse
import shutil
from contextlib import ExitStack, closing
from typing import Any

from deepsched.benchmark import bundled_model, measure
from deepsched.cli.files import check_distinct, output, to_json
from deepsched.cli.help import HelpFormatter
from deepsched.cli.options import add_model, add_sizes, finite, parse_shapes, streams_to_compare
from deepsched.cli.progress import ProgressBar, progress_bar
from deepsched.engine import Engine
from deepsched.errors import OptionError
from deepsched.scheduler import Scheduler
from deepsched.timeline import Trace
from deepsched.timeline.perfetto import to_perfetto
from deepsched.timeline.svg import draw
from deepsched.timeline.text import render

_EPILOG = """\
In the picture each box is a request, by its number, on the cores that it ran on. In the timeline
(-o), which https://ui.perfetto.dev and chrome://tracing open:

  load         requests waiting, busy cores
  streams      a row for each stream, a slice for each run
  core groups  a row for each group of several streams that requests took together (elastic)
  waiting      a slice for each request, from the call until its run began
  arguments    request: its number; batch: items in it; outcome: done, failed, expired, cancelled
               or closed; ran: inline (on the thread that called) or on a worker; waited_ms

Traces of several schedulers lie in one timeline, each beginning at 0.

exit codes:
  0    traced
  2    arguments or a model that cannot be used
  130  Ctrl-C; what was traced so far is printed and written all the same
  141  nobody reads the output to its end, as with `| head`; files are written all the same

examples:
  deepsched trace model.onnx --svg streams.svg
  deepsched trace model.onnx -s elastic --rate 100 --poisson -o trace.json
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "trace",
        help="draw which cores serve which request, from a measurement",
        description="Puts a load on MODEL and draws which cores served which request, and when. "
        "Without -s: single_stream and multi_stream, one below the other. In a program of yours "
        "do the same with Context.trace().",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="FILE.json", help="write a timeline there")
    parser.add_argument("--svg", metavar="FILE.svg", help="write the picture there")
    parser.add_argument("--json", action="store_true", help="print the timeline instead")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "-s",
        "--scheduler",
        default="single_stream,multi_stream",
        metavar="NAME[,NAME]",
        help="single_stream, multi_stream, elastic (default single_stream,multi_stream)",
    )
    add_sizes(engine)
    engine.add_argument("-ncores", "--num_cores", type=int, help="physical cores to use")
    engine.add_argument(
        "-nstreams",
        "--num_streams",
        type=int,
        help="requests that run side by side with multi_stream and elastic (default: one per L3 "
        "cache, two at least if there are two cores; elastic: one per core)",
    )
    load = parser.add_argument_group("load")
    load.add_argument("-t", "--time", type=finite, default=2.0, help="seconds to trace (default 2)")
    load.add_argument(
        "--callers",
        type=int,
        metavar="N",
        help="threads that call (default: one more than there are streams; open loop: see "
        "`deepsched benchmark -h`)",
    )
    load.add_argument("--rate", type=finite, metavar="R", help="open loop: R requests a second")
    load.add_argument("--poisson", action="store_true", help="at random times")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Traces and draws."""
    if args.time <= 0:
        raise OptionError(f"--time must be positive, got {args.time}")
    if args.poisson and args.rate is None:
        raise OptionError("--poisson is for an open loop; give --rate with it")
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
        # After the files: a reader that leaves does not take them away.
        at_end.callback(print, shown)
        if timeline is not None:
            timeline.write(text)
        if picture is not None:
            picture.write(draw(traces))
    if is_interrupted:
        raise KeyboardInterrupt


def _traces(args: argparse.Namespace, schedulers: list[Scheduler]) -> tuple[list[Trace], bool]:
    """A trace for each, and whether Ctrl-C ended it."""
    traces: list[Trace] = []
    is_interrupted = False
    with progress_bar(args.quiet) as bar:
        for scheduler in schedulers:
            bar.begin(str(scheduler), args.time)
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
                seconds=args.time,
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
    )


def _callers(args: argparse.Namespace, engine: Engine) -> int | None:
    if args.callers is None and args.rate is None:
        return engine.num_streams + 1
    callers: int | None = args.callers
    return callers
