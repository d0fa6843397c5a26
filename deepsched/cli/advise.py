"""`deepsched advise`: which setting serves a model best here, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from deepsched.advice import Advice, Setting, advise


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "advise",
        help="find the scheduler, streams and cores that serve a model best here",
        description="Measures how MODEL scales with cores and with requests side by side, and "
        "recommends scheduler, num_streams and num_cores for a load, with the reason, the figures, "
        "and the line to paste. The answer is remembered for this model, machine and load.",
        epilog="streams: how many the setting makes here. items/s: requests a second times batch "
        "size. mean, p50, p99: of the latency, and what half, and 99 of 100, of the requests "
        "stayed within, from the call (at a rate: from when it was due) to the answer, in ms. "
        "answered: the share of the requests due that were; a rate that is too high leaves some. "
        "Exit codes: 0; 2 for arguments or a model that cannot be used; 130 for "
        "Ctrl-C.",
    )
    parser.add_argument("model_path", metavar="MODEL", help="path of an ONNX file")
    parser.add_argument("-b", "--batch_size", type=int, default=1, help="items in a request")
    parser.add_argument("-ncores", "--num_cores", type=int, help="the most cores to use")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--callers", type=int, metavar="N",
        help="load: N threads that each wait for their answer (default 2 a core)",
    )  # fmt: skip
    load.add_argument(
        "--rate", type=float, metavar="R", help="load: R requests a second, at random times"
    )
    parser.add_argument("--p99-limit", type=float, metavar="MS", help="p99 to stay within, in ms")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long to measure, about (default 20)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure even if it was done before")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what is measured")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measures and reports."""
    with Console(stderr=True).status("measuring") as status:
        if args.quiet:
            status.stop()
        advice = advise(
            args.model_path, args.batch_size, num_cores=args.num_cores, callers=args.callers,
            rate=args.rate, p99_limit_ms=args.p99_limit, seconds=args.seconds,
            remembers=not args.fresh, on_progress=lambda text: status.update(f"measuring {text}"),
        )  # fmt: skip
    if args.json:
        line = {"compile_line": advice.compile_line(args.model_path)}
        print(json.dumps({**advice.to_dict(), **line}, indent=2))
        return
    _print(advice, args.model_path)


def _print(advice: Advice, model: str) -> None:
    console = Console(highlight=False)
    console.print(advice.compile_line(model), style="bold", soft_wrap=True)  # to be copied whole
    console.print(f"\nWhy: {advice.reason} {advice.cost_of_ignoring}")
    if advice.batches:
        console.print(_batches(advice))
    scaling = ", ".join(f"{cores}: {ms:.2f} ms" for cores, ms in advice.scaling_ms.items())
    console.print(f"A lone request, by cores: {scaling}\n")
    table = Table(
        Column("setting", overflow="fold"), "streams", "items/s", "mean ms", "p50 ms", "p99 ms",
        "answered", title=f"With {advice.load}",
    )  # fmt: skip
    for it in advice.figures:
        table.add_row(
            _short(it.setting), str(it.num_streams), f"{it.items_per_sec:.1f}", f"{it.mean_ms:.2f}",
            f"{it.p50_ms:.2f}", f"{it.p99_ms:.2f}",
            "all" if it.answered == 1 else f"{it.answered:.1%}",
            style="bold" if it.setting == advice.setting else None,
        )  # fmt: skip
    console.print(table)
    how = "remembered; --fresh measures anew" if advice.was_remembered else "measured"
    console.print(f"({how}; took {advice.seconds:.0f} s)")


def _short(setting: Setting) -> str:
    return str(setting).removeprefix("scheduler=").replace('"', "")


def _batches(advice: Advice) -> str:
    first = advice.batches[0]
    larger = ", ".join(
        f"{it.batch_size}: {it.items_per_sec:.1f} items/s, p50 {it.p50_ms:.1f} ms"
        for it in advice.batches[1:]
    )
    if not larger:
        return f"Batches: the model, or the limit, takes none larger than {first.batch_size}."
    best = advice.best_batch_size
    if best == first.batch_size:
        return f"Batches: larger ones do not gain ({larger})."
    return f"Batches: batch_size={best} serves most, if items can be put together ({larger})."
