"""`deepsched advise`: which setting serves a model best here, and why."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.table import Table

from deepsched.advice import Advice, Setting, advise
from deepsched.benchmark import bundled_model
from deepsched.cli.console import Console
from deepsched.cli.files import to_json
from deepsched.cli.help import HelpFormatter
from deepsched.cli.options import add_model, add_sizes, finite, parse_shapes
from deepsched.formatting import rounded
from deepsched.machine.contention import contention_note, is_contended

_EPILOG = """\
fields of the table and of the JSON's `figures`:
  setting       what to give to compile_model
  streams       num_streams: how many that makes here
  items/s       items_per_sec: requests a second times batch size
  mean ms       mean_ms: of the latency, from the call (at a rate: from when it was due) to the
                answer
  p50 ms        p50_ms: half of the requests stayed within
  p99 ms        p99_ms: 99 of 100 of the requests stayed within
  answered      the share of the requests due that were; a rate that is too high leaves some
  keeps_up      (JSON) whether they were answered as fast as they fell due

other fields of the JSON:
  setting           what is recommended
  compile_line      Python that follows it
  batch_size        as asked for; items
  input_shapes      as asked for
  best_batch_size   the smallest of `batches` within 3 % of the most items a second; null: none were
                    compared: only without --callers, --rate and --input_shapes
  batches           by batch_size, with the recommended setting: items_per_sec, p50_ms of requests
  reason            why that setting
  cost_of_ignoring  what the default, single_stream on all cores, would give instead
  scaling_ms        the median latency of a lone request, ms, by cores
  load              what the settings were compared under
  seconds           how long it took to find out
  was_remembered    whether that was at another time
  others_share      what other processes took of the CPUs meanwhile, 0 to 1; from 0.1 on the
                    answer is unsure, and not remembered; null: unknown

exit codes:
  0    advised
  2    arguments or a model that cannot be used
  130  Ctrl-C
  141  nobody reads the output to its end, as with `| head`

examples:
  deepsched advise model.onnx
  deepsched advise model.onnx --callers 1
  deepsched advise model.onnx --rate 100 --p99-limit 20
"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "advise",
        help="find the scheduler, streams and cores that serve a model best here",
        description="Measures how MODEL scales with cores and with requests side by side, and "
        "recommends scheduler, num_streams and num_cores for a load, with the reason, the figures, "
        "and the line to paste. The answer is remembered for this model, machine and load.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_model(parser)
    add_sizes(parser)
    parser.add_argument("-ncores", "--num_cores", type=int, help="the most cores to use")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--callers",
        type=int,
        metavar="N",
        help="load: N threads that each wait for their answer (default 2 a core)",
    )
    load.add_argument(
        "--rate", type=finite, metavar="R", help="load: R requests a second, at random times"
    )
    parser.add_argument("--p99-limit", type=finite, metavar="MS", help="p99 to stay within, in ms")
    parser.add_argument(
        "--seconds", type=finite, default=20.0, help="how long to measure, about (default 20)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure even if it was done before")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what is measured")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    model = args.model_path or bundled_model()
    with Console(stderr=True).status("measuring") as status:
        if args.quiet:
            status.stop()
        advice = advise(
            model,
            args.batch_size,
            parse_shapes(args.input_shapes),
            num_cores=args.num_cores,
            callers=args.callers,
            rate=args.rate,
            p99_limit_ms=args.p99_limit,
            seconds=args.seconds,
            remembers=not args.fresh,
            on_progress=lambda text: status.update(f"measuring {text}"),
        )
    if args.json:
        line = {"compile_line": advice.compile_line(model)}
        print(to_json({**advice.to_dict(), **line}))
        return
    _print(advice, model)


def _print(advice: Advice, model: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)  # into a file: not cut at 80
    console.print(advice.compile_line(model), style="bold", soft_wrap=True)  # to be copied whole
    console.print(f"\nWhy: {advice.reason} {advice.cost_of_ignoring}")
    if is_contended(advice.others_share):
        note = contention_note(advice.others_share)
        console.print(f"Note: {note} This answer is not remembered.")
    if advice.batches:
        _print_batches(console, advice, model)
    scaling = ", ".join(f"{cores}: {rounded(ms)} ms" for cores, ms in advice.scaling_ms.items())
    console.print(f"A lone request, by cores: {scaling}\n")
    table = Table(title=f"With {advice.load}")
    table.add_column("setting", overflow="fold")
    for name in ("streams", "items/s", "mean ms", "p50 ms", "p99 ms", "answered"):
        table.add_column(name, justify="right", overflow="fold")
    for it in advice.figures:
        table.add_row(
            ("> " if it.setting == advice.setting else "  ") + _short(it.setting),
            str(it.num_streams),
            f"{it.items_per_sec:.1f}",
            rounded(it.mean_ms),
            rounded(it.p50_ms),
            rounded(it.p99_ms),
            "all" if it.answered == 1 else f"{it.answered:.1%}",
            style="bold" if it.setting == advice.setting else None,
        )
    console.print(table)
    how = "remembered; --fresh measures anew" if advice.was_remembered else "measured"
    console.print(f"({how}; took {advice.seconds:.0f} s)")


def _short(setting: Setting) -> str:
    return str(setting).removeprefix("scheduler=").replace('"', "")


def _print_batches(console: Console, advice: Advice, model: str) -> None:
    first, *others = advice.batches
    larger = ", ".join(
        f"batch_size={it.batch_size}: {it.items_per_sec:.1f} items/s, p50 {rounded(it.p50_ms)} ms"
        for it in others
    )
    best = advice.best_batch_size
    if not larger:
        text = f"the model takes none larger than {first.batch_size}, or they exceed the p99 limit."
    elif best == first.batch_size:
        text = f"larger ones do not gain ({larger})."
    else:
        text = f"batch_size={best} serves most ({larger}). If items can be put together:"
    console.print(f"Batches: {text}")
    if best != first.batch_size:
        console.print(advice.compile_line(model, best), soft_wrap=True)
