"""`deepsched advise`: the best setting for a model on this machine, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from rich import box
from rich.table import Table

from deepsched.advice import Advice, Replicas, Setting, advise
from deepsched.benchmark import bundled_model
from deepsched.benchmark.percentiles import requests_for
from deepsched.cli.console import Console, only_errors
from deepsched.cli.files import to_json
from deepsched.cli.options import (
    add_batching,
    add_custom_ops,
    add_model,
    add_num_cores,
    add_option,
    add_rewrites,
    add_seconds,
    add_sizes,
    finite,
    parse_shapes,
)
from deepsched.formatting import counted, rounded
from deepsched.machine.contention import contention_notes, is_contended
from deepsched.shortages import thread_errors

_EPILOG = """\
fields of the table and of the JSON's `figures`:
  setting       arguments for compile_model
  streams       num_streams: how many streams that makes here
  requests      num_requests: how many requests the figures are of
  items/s       items_per_sec: throughput, in requests per second times batch size
  mean ms       mean_ms: mean latency, from the call (at a rate: from the scheduled arrival) to the
                answer
  p50 ms        p50_ms: median latency
  p99 ms        p99_ms: 99th percentile of the latency, over the requests of all rounds; dropped
                ones are infinitely late (JSON: null). ~: of fewer than the 300 that it takes
  +-            margin: uncertainty of the figure that settings are compared by, items/s (one
                caller: p50 ms; at a rate: mean ms), relative to it
  answered      share of the offered requests that were answered; at too high a rate some are
                dropped
  keeps_up      (JSON) whether throughput matched the offered load

other fields of the JSON:
  setting           the recommended setting
  compile_line      the line of Python to paste
  batch_size        as given, in items; "auto" if none was
  input_shapes      as given
  custom_ops        paths of the libraries that were given
  rewrites          as given
  best_batch_size   the smallest of `batches` within 3 % of the highest throughput; null if none
                    were compared, as with --callers, --rate or --input-shapes
  batches           items_per_sec, p50_ms and num_requests by batch_size, with the recommended
                    setting
  reason            why this setting
  cost_of_ignoring  how the default, single_stream on all cores, does instead
  scaling_ms        median latency of a lone request in ms, by number of cores
  load              the load that the settings were compared under
  seconds           how long measuring took
  enough_seconds    if there were too few requests to tell settings apart, --seconds that suffice;
                    setting is then the default, and not cached; else null
  replicas          with --rate and --p99-limit: by balancer, num_replicas that serve the rate, and
                    of each num_cores and num_streams; p99_ms and load that this makes, as simulated
                    from these run lengths. Empty if no number of replicas has such a p99
  was_remembered    whether the answer comes from an earlier run
  others_share      share of the worst CPU's time that other processes took, 0 to 1, at least: of
                    the setting that it hit worst, the median of its rounds; from 0.1 on the answer
                    is unreliable and not cached; null if unknown
  steal_share       the same of what the hypervisor stole; null if this machine counts none
  states            by state of the machine (round trip between its cores) in which every setting
                    was measured, the commonest first: its best setting, and num_measurements;
                    setting and figures are of the first. Answers that differ are not cached
  num_incomparable  measurements in none of these states; without any, figures are of all

exit codes:
  0    done
  1    stdout cannot be written
  2    invalid arguments, or a model that cannot be used
  130  Ctrl-C
  141  output pipe closed early, as with `| head`

examples:
  deepsched advise model.onnx
  deepsched advise model.onnx --callers 1
  deepsched advise model.onnx --rate 100 --p99-limit 20
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describes the subcommand and its options."""
    parser.description = (
        "Measures how MODEL scales with cores and with concurrent requests, and recommends "
        "scheduler, num_streams and num_cores for a load: with the reason, the figures, and the "
        "line to paste. The answer is cached for this model, machine and load."
    )
    parser.epilog = _EPILOG
    add_model(parser)
    add_sizes(parser)
    add_custom_ops(parser)
    add_rewrites(parser)
    add_batching(parser)
    add_num_cores(parser)
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--callers",
        type=int,
        metavar="N",
        help="closed loop: N threads that each wait for their answer (default: 2 per core)",
    )
    load.add_argument(
        "--rate",
        type=finite,
        metavar="R",
        help="open loop: R requests per second, random arrivals",
    )
    add_option(
        parser, "--p99-limit", type=finite, metavar="MS", help="upper limit for the p99 latency"
    )
    add_seconds(parser, 20.0, "how long to measure, approximately; slow models up to 6 times that")
    parser.add_argument("--fresh", action="store_true", help="ignore a cached answer")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no progress messages, no warnings from the log"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    model = args.model_path or bundled_model()
    with (
        only_errors(args.quiet),
        thread_errors("the thread that draws progress"),
        Console(stderr=True).status("measuring") as status,
    ):
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
            custom_ops=args.custom_ops,
            rewrites=args.rewrites,
            batching=args.batching,
            remembers=not args.fresh,
            on_progress=lambda text: status.update(f"measuring {text}"),
        )
    if args.json:
        line = {"compile_line": advice.compile_line(model)}
        print(to_json({**advice.to_dict(), **line}))
        return
    _print(advice, model, args.rate is not None and args.p99_limit is not None)


def _print(advice: Advice, model: str, asks_for_replicas: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)  # 80, rich's default, cuts
    console.print(advice.compile_line(model), style="bold", soft_wrap=True)  # one line to copy
    console.print(f"\nWhy: {advice.reason} {advice.cost_of_ignoring}")
    for note in contention_notes(advice.others_share, advice.steal_share):
        console.print(f"Note: {note}")
    for line in _by_state(advice):
        console.print(line)
    is_uncertain = is_contended(advice.others_share) or advice.enough_seconds is not None
    if is_uncertain or advice.differs_by_state:
        console.print("This answer is not cached.")
    if advice.batches:
        _print_batches(console, advice, model)
    scaling = ", ".join(f"{cores}: {rounded(ms)} ms" for cores, ms in advice.scaling_ms.items())
    console.print(f"A lone request, by cores: {scaling}\n")
    table = Table(title=f"With {advice.load}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold")
    columns = ("streams", "requests", "items/s", "mean ms", "p50 ms", "p99 ms", "+-", "answered")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for it in advice.figures:
        table.add_row(
            ("> " if it.setting == advice.setting else "  ") + _short(it.setting),
            str(it.num_streams),
            str(it.num_requests),
            f"{it.items_per_sec:.1f}",
            rounded(it.mean_ms),
            rounded(it.p50_ms),
            "~" * (it.num_requests < requests_for(99)) + rounded(it.p99_ms),
            f"{it.margin:.1%}",
            "all" if it.answered == 1 else f"{it.answered:.1%}",
            style="bold" if it.setting == advice.setting else None,
        )
    console.print(table)
    if any(it.num_requests < requests_for(99) for it in advice.figures):
        console.print(f"~: of fewer than the {requests_for(99)} requests that a p99 takes.")
    for replicas in advice.replicas:
        _print_replicas(console, advice, replicas, model)
    if asks_for_replicas and not advice.replicas:
        console.print("No number of replicas has such a p99: runs alone take longer.")
    how = "cached; --fresh measures again" if advice.was_remembered else "measured"
    console.print(f"({how}; took {advice.seconds:.0f} s)")


def _by_state(advice: Advice) -> Iterator[str]:
    """What the states of the machine have to do with the answer."""
    answers = [
        f"{it.state}: {_short(it.setting)} ({counted(it.num_measurements, 'measurement')})"
        for it in advice.states
    ]
    if len(answers) > 1:
        yield (
            "The machine was in several states, by the round trip between its cores; the best "
            f"{'differs' if advice.differs_by_state else 'is the same in each'}: "
            f"{'; '.join(answers)}."
        )
        if advice.differs_by_state:
            yield (
                "The host moves the virtual CPUs: choose for the state that lasts. The figures "
                "below are of the first."
            )
    elif answers:
        alone = "" if advice.num_incomparable else "; no other came"
        yield f"One state was compared: {advice.states[0].state} between cores{alone}."
    if advice.num_incomparable and advice.states:
        yield (
            f"Left out: {counted(advice.num_incomparable, 'measurement')}, during which the state "
            "changed, or in whose state not every setting was measured."
        )
    elif advice.num_incomparable and advice.enough_seconds is None:
        yield (
            "The machine was in no state for long enough to measure every setting in it, so these "
            "figures mix states: measure again, with more --seconds."
        )


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
        text = f"none larger than {first.batch_size} fits the model, the time or the p99 limit."
    elif best == first.batch_size:
        text = f"larger ones gain nothing ({larger})."
    else:
        text = f"batch_size={best} has the highest throughput ({larger}). If you can batch items:"
    console.print(f"Batches: {text}")
    if best != first.batch_size:
        console.print(advice.compile_line(model, best), soft_wrap=True)


def _print_replicas(console: Console, advice: Advice, replicas: Replicas, model: str) -> None:
    """The setting to paste."""
    number = counted(replicas.num_replicas, "replica")
    console.print(
        f"{replicas.balancer}: {number} of {counted(replicas.num_cores, 'core')} in "
        f"{counted(replicas.num_streams, 'stream')}; simulated p99 {rounded(replicas.p99_ms)} ms "
        f"at {replicas.load:.0%} load:"
    )
    lines = (
        advice.ray_line(model, replicas)
        if replicas.balancer == "Ray Serve"
        else replicas.kubernetes_lines()
    )
    console.print(lines, style="bold", soft_wrap=True)
