"""`deepsched analyze`: where a model's time goes, and which operators stop scaling."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from deepsched.analysis import Analysis, Operator, analyze
from deepsched.analysis.operators import Timings
from deepsched.benchmark import bundled_model
from deepsched.benchmark.report import flatten, write_rows
from deepsched.cli.console import Console
from deepsched.cli.files import check_distinct, output, to_json
from deepsched.cli.options import (
    add_custom_ops,
    add_model,
    add_num_cores,
    add_output,
    add_rewrites,
    add_seconds,
    add_sizes,
    parse_shapes,
)
from deepsched.errors import OptionError
from deepsched.formatting import counted, rounded
from deepsched.machine.contention import contention_notes
from deepsched.shortages import thread_errors

_EPILOG = """\
Times the operators of the graph as ONNX Runtime optimised it, while one request runs alone.
Profiling adds 1 to 4 us to each call, more on more cores. This overhead is measured with operators
that do next to nothing, and subtracted; times that it would swamp are shown as -.

fields:
  nodes         number of operators of the type
  share         share of a request's time, on the most cores
  N cores       ms per request on N cores, summed over all calls; mean of the faster half of the
                runs
  speed-up      the most cores against one
  good for      the number of cores beyond which more save less than 5 % of the time
  GFLOP/s       additions and multiplications (of any numeric type), in 1e9 per second, on the most
                cores; - where unknown: most types mainly move memory. Includes the channels that
                ONNX Runtime pads to blocks of 8 or 16
  GB/s          inputs, weights and outputs, each read or written once, in 1e9 bytes per second, on
                the most cores; - where unknown
  shapes        of the inputs, constants included, and of the output
  between       time of a request outside operators: ONNX Runtime's own work, and deepsched's

JSON: times are in ms by number of cores; `operations`, `bytes_moved` and `calls` are per request.
`plain_ms` is a request without profiling, from the call to the answer; `run_ms` a profiled run;
`slowdown` their ratio on the most cores; `rewrites` how rules fared that fit the graph; `lagging`
types that no rule helped and that take over 3 % of the time, and twice as long as at the best
rates of arithmetic and memory seen; `timing_ms` the overhead subtracted; `is_told` whether
what remains is longer than that.

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a model that cannot be used
  130  Ctrl-C
  141  output pipe closed early, as with `| head`

examples:
  deepsched analyze model.onnx
  deepsched analyze model.onnx -b 8 --top 40 --csv operators.csv
"""


# From this slowdown on, the summary warns of it.
_MUCH_SLOWER = 1.3


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = "Times every operator of MODEL on 1, 2, 4, ... cores and on all."
    parser.epilog = _EPILOG
    add_model(parser)
    add_sizes(parser)
    add_custom_ops(parser)
    add_rewrites(parser)
    add_num_cores(parser)
    add_seconds(parser, 10.0, "how long to measure, approximately")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="list the N slowest operators (default 10)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress messages")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_output(parser, "write the result there as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write a row for each operator there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    if args.top < 0:
        raise OptionError(f"--top must be 0 or more, got {args.top}")
    check_distinct(args, "output", "csv")
    with output(args, "output") as export, output(args, "csv") as table:
        with (
            thread_errors("the thread that draws progress"),
            Console(stderr=True).status("measuring") as status,
        ):
            if args.quiet:
                status.stop()
            analysis = analyze(
                args.model_path or bundled_model(),
                args.batch_size,
                parse_shapes(args.input_shapes),
                num_cores=args.num_cores,
                seconds=args.seconds,
                custom_ops=args.custom_ops,
                rewrites=args.rewrites,
                on_progress=lambda text: status.update(f"measuring on {text}"),
            )
        if args.json:
            print(to_json(analysis.to_dict()))
        else:
            _print(analysis, args.top)
        if export is not None:
            export.write(to_json(analysis.to_dict()))
        if table is not None:
            write_rows([flatten(_in_words(it)) for it in analysis.to_dict()["operators"]], table)


def _in_words(operator: dict[str, Any]) -> dict[str, Any]:
    shapes = ("input_shapes", "output_shapes")
    return {
        **operator,
        **{name: " ".join(map(_shape, operator[name])) for name in shapes},
        "weight_shape": _shape(operator["weight_shape"]),
    }


def _shape(shape: Sequence[int] | None) -> str:
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"


# --- On the terminal ------------------------------------------------------------------------------


def _print(analysis: Analysis, top: int) -> None:
    # In a file: 80, rich's default, cuts.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_summary(analysis), soft_wrap=True)
    console.print()
    is_wide = console.width >= 110 + 9 * len(analysis.run_ms)
    if not analysis.operators:
        return
    types = _table("By type", ("type", "nodes"), analysis, is_wide)
    for it in analysis.types:
        types.add_row(it.op_type, str(it.count), *_figures(analysis, it, is_wide))
    console.print(types)
    between = ", ".join(f"{cores}: {rounded(ms)} ms" for cores, ms in analysis.between_ms.items())
    console.print(f"Between operators, by cores: {between}\n")
    slowest = analysis.slowest[:top]
    if not is_wide:
        console.print("A wider terminal, or --csv, shows shapes, GB/s and every number of cores.\n")
    title = f"The {len(slowest)} slowest of {len(analysis.operators)} operators"
    names = ("operator", "type", "shapes") if is_wide else ("operator", "type")
    operators = _table(title, names, analysis, is_wide)
    for operator in slowest:
        described = (operator.name, operator.op_type, _shapes(operator))[: len(names)]
        operators.add_row(*described, *_figures(analysis, operator, is_wide))
    console.print(operators)


def _shapes(operator: Operator) -> str:
    inputs = " ".join(map(_shape, operator.input_shapes))
    return f"{inputs} > {' '.join(map(_shape, operator.output_shapes[:1]))}"


def _table(title: str, names: Sequence[str], analysis: Analysis, is_wide: bool) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    cores = [counted(count, "core") for count in _shown(analysis, is_wide)]
    rates = ["GFLOP/s", "GB/s"] if is_wide else ["GFLOP/s"]
    for name in ("share", *cores, "speed-up", "good for", *rates):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(analysis: Analysis, it: Timings, is_wide: bool) -> list[str]:
    most = analysis.most_cores
    figures = [f"{analysis.share(it):.1%}"]
    figures += [f"{it.ms[cores]:.3f}" for cores in _shown(analysis, is_wide)]
    figures += [_or_dash(it.speedup, ".2f"), _or_dash(it.useful_cores, "d")]
    figures.append(_or_dash(it.gflops(most), ".1f"))
    return [*figures, _or_dash(it.gigabytes_per_second(most), ".1f")] if is_wide else figures


def _shown(analysis: Analysis, is_wide: bool) -> list[int]:
    """The numbers of cores that fit the terminal."""
    cores = sorted(analysis.run_ms)
    return cores if is_wide else sorted({cores[0], cores[-1]})


def _or_dash(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def _summary(analysis: Analysis) -> str:
    times = ", ".join(
        f"{rounded(ms)} ms on {counted(cores, 'core')}" for cores, ms in analysis.plain_ms.items()
    )
    sentences = [f"A lone request takes {times}."]
    if not analysis.operators:
        return f"{sentences[0]} No operators remain: its outputs are constants."
    most = analysis.most_cores
    slowest = analysis.types[0]
    sentences.append(
        f"On {counted(most, 'core')}, {slowest.op_type} takes {analysis.share(slowest):.0%} of it "
        f"({slowest.count} of {len(analysis.operators)} operators)."
    )
    if analysis.slowdown > _MUCH_SLOWER:
        sentences.append(
            f"Profiling makes it {analysis.slowdown:.1f} times as slow: the figures of small "
            "operators are estimates."
        )
    if most > 1:
        sentences.append(_stuck(analysis))
    if kept := [it for it in analysis.rewrites if it.is_kept]:
        named = ", ".join(f"{it.rule} ({counted(it.num_places, 'place')})" for it in kept)
        sentences.append(f"Rewrites of the graph: {named}.")
    if lagging := analysis.lagging:
        named = ", ".join(f"{it.op_type} ({analysis.share(it):.0%})" for it in lagging)
        sentences.append(
            "No rewrite helps these, which take more than twice as long as their arithmetic and "
            f"memory traffic would at the best rates of this model: {named}."
        )
    if analysis.state is None:
        sentences.append(
            "The distance between the cores changed while this was measured, or could not be seen, "
            "so figures of different numbers of cores may not compare: repeat it."
        )
    sentences += contention_notes(analysis.others_share, analysis.steal_share)
    return " ".join(sentences)


def _stuck(analysis: Analysis) -> str:
    most = analysis.most_cores
    stuck = [it for it in analysis.stuck if analysis.share(it) >= 0.01]
    if not stuck:
        return f"Every type of operator that matters scales to {most} cores."
    share = sum(analysis.share(it) for it in stuck)
    named = ", ".join(
        f"{it.op_type} ({analysis.share(it):.0%}, useful cores: {it.useful_cores})" for it in stuck
    )
    return (
        f"Operator types that do not scale to {most} cores take {share:.0%}: {named}. "
        "While those run, the other cores are mostly idle; more streams give them work, "
        "and `deepsched advise` finds how many."
    )
