"""The hot path against plain onnxruntime: one row for each promise, with its goal.

    python -m bench.hot_path [--rows identity,mlp] [--rounds 5] [-x out.json] [--plot out.png]

Within a round the forms of a row take turns; what counts is the ratio of medians over the
measurements of one state of the machine (deepsched/machine/state.py), for each state in which all
forms were measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.build import native
from bench.crowd import run_crowd
from bench.micro import identity_model
from bench.models import make_mlp
from bench.peers import NUM_CORES, RawForms, raw_session
from deepsched import Engine, compile_model
from deepsched.benchmark import bundled_model, measure
from deepsched.machine.state import (
    Conditions,
    State,
    StateWatch,
    by_complete_state,
    states_of,
    summarize,
)
from deepsched.runtime.session import open_session

Forms = dict[str, Callable[[], float]]


@dataclass
class Row:
    """One promise. `forms`: what is measured; `ratio`: of their medians in one state."""

    name: str
    goal: float
    higher_is_better: bool
    unit: str
    forms: Forms
    ratio: Callable[[dict[str, float]], float]
    medians: dict[State, dict[str, float]] = field(default_factory=dict)
    """Of each state in which all forms were measured, the commonest first."""
    states: str = ""

    def run(self, num_rounds: int) -> None:
        for form in self.forms.values():
            form()  # warm
        seen: list[Conditions] = []
        measured: list[tuple[str, float]] = []
        for _ in range(num_rounds):
            for name, form in self.forms.items():
                watch = StateWatch()
                measured.append((name, form()))
                seen.append(watch.end())
        self.states = summarize(states_of(seen))
        self.medians = {
            state: {form: statistics.median(of) for form, of in figures.items()}
            for state, figures in by_complete_state(seen, measured).items()
        }

    def value(self, state: State) -> float:
        return self.ratio(self.medians[state])

    def is_met(self, state: State) -> bool:
        value = self.value(state)
        return value >= self.goal if self.higher_is_better else value <= self.goal


def ours_over_best(medians: dict[str, float]) -> float:
    """`ours` against the best of the other forms, where more is better."""
    return medians["ours"] / max(value for name, value in medians.items() if name != "ours")


def ours_over_least(medians: dict[str, float]) -> float:
    """`ours` against the best of the other forms, where less is better."""
    return medians["ours"] / min(value for name, value in medians.items() if name != "ours")


def p50_us(call: Callable[[], Any], count: int = 5000) -> float:
    times = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


def rate(run: Callable[[Any], Any], inputs: Any, callers: int, seconds: float) -> float:
    result = measure(run, inputs, callers=callers, seconds=seconds, warmup_seconds=seconds / 5)
    return result.items_per_sec


def loop_rate(call: Callable[[], Any], seconds: float = 0.4) -> float:
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        for _ in range(100):
            call()
        count += 100
    return count / passed


def map_rate(engine: Engine, inputs: list[Any], count: int = 50_000) -> float:
    begin = time.perf_counter()
    for _ in engine.map(inputs for _ in range(count)):
        pass
    return count / (time.perf_counter() - begin)


def asyncio_rate(engine: Engine, inputs: list[Any], in_flight: int, count: int = 50_000) -> float:
    async def call_on() -> None:
        for _ in range(count // in_flight):
            await engine.run_async(inputs)

    async def main() -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(call_on() for _ in range(in_flight)))
        return count // in_flight * in_flight / (time.perf_counter() - begin)

    return asyncio.run(main())


def pool_rate(run: Callable[[Any], Any], inputs: Any, count: int = 4000) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(NUM_CORES) as pool:
        wait([pool.submit(run, inputs) for _ in range(count)])
    return count / (time.perf_counter() - begin)


def open_loop_p99_ms(
    send: Callable[[Callable[[], None]], Any], per_second: float, seconds: float, seed: int
) -> float:
    """Poisson arrivals: the 99th percentile from when a request was due until it ended."""
    rng = random.Random(seed)
    latencies: list[float] = []
    sent = []
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        due += rng.expovariate(per_second)
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        sent.append(send(lambda due=due: latencies.append(time.perf_counter() - due)))
    wait(sent)
    return float(np.percentile(latencies, 99)) * 1e3


@contextmanager
def identity_rows() -> Iterator[list[Row]]:
    model = identity_model()
    raw = raw_session(model, 1)
    loops = native()
    bare = open_session(model, num_threads=1, cpus=None, thread_prefix="bare", config={})
    with (
        compile_model(model) as single,
        compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as multi,
    ):
        inputs = single.generate_random_inputs()
        feed = {single.input_names[0]: inputs[0]}

        def of_single() -> float:
            return p50_us(lambda: single.run(inputs))

        def of_raw() -> float:
            return p50_us(lambda: raw.run(None, feed))

        yield [
            Row(
                "identity, 1 caller, single_stream",
                0.50,
                False,
                "p50 us",
                {"ours": of_single, "onnxruntime run": of_raw},
                ours_over_least,
            ),
            Row(
                "the same, above a C loop, us",
                1.0,
                False,
                "p50 us",
                {
                    "ours": of_single,
                    "C loop": lambda: loops.run_p50_ns(bare, inputs[0], 5000) / 1e3,
                },
                lambda medians: medians["ours"] - medians["C loop"],
            ),
            Row(
                "identity, 1 caller, multi_stream",
                0.80,
                False,
                "p50 us",
                {"ours": lambda: p50_us(lambda: multi.run(inputs)), "onnxruntime run": of_raw},
                ours_over_least,
            ),
        ]


@contextmanager
def mlp_rows() -> Iterator[list[Row]]:
    raw = RawForms(make_mlp())
    with two_streams() as engine:
        inputs = engine.generate_random_inputs()
        feed = {engine.input_names[0]: inputs[0]}

        def raw_loop() -> float:
            return loop_rate(lambda: raw.shared.run(None, feed))

        yield [
            Row(
                "MLP 3x128, map, 1 thread",
                2.5,
                True,
                "requests/s",
                {"ours": lambda: map_rate(engine, inputs), "run in a loop": raw_loop},
                ours_over_best,
            ),
            Row(
                "MLP 3x128, asyncio, 64 in flight",
                1.3,
                True,
                "requests/s",
                {"ours": lambda: asyncio_rate(engine, inputs, 64), "run in a loop": raw_loop},
                ours_over_best,
            ),
        ]


def two_streams() -> Engine:
    return compile_model(make_mlp(), scheduler="multi_stream", num_streams=min(2, NUM_CORES))


@contextmanager
def crowd_rows() -> Iterator[list[Row]]:
    """Python threads that call in a loop, from one to a crowd."""
    raw = RawForms(make_mlp())
    with two_streams() as engine:
        inputs = engine.generate_random_inputs()
        forms = {
            "ours": engine.run,
            "all threads": raw.run_all_threads,
            "1 thread, shared": raw.run_shared,
            "one per stream": raw.run_per_stream,
        }

        def of_crowd(run: Callable[[Any], Any], callers: int, figure: str) -> Callable[[], float]:
            return lambda: float(getattr(run_crowd(run, inputs, callers, 0.5, 0.1), figure))

        def ours(medians: dict[str, float]) -> float:
            return medians["ours"]

        def rates(callers: int) -> Forms:
            return {name: of_crowd(run, callers, "per_second") for name, run in forms.items()}

        yield [
            *(
                Row(
                    f"MLP 3x128, {callers} thread{'s' * (callers != 1)}",
                    goal,
                    True,
                    "requests/s",
                    rates(callers),
                    ours_over_best,
                )
                for callers, goal in ((1, 1.0), (2, 1.0), (4, 2.8), (8, 3.0), (32, 2.5))
            ),
            Row(
                "the same, 32 threads against own 4",
                0.85,
                True,
                "requests/s",
                {
                    "ours": of_crowd(engine.run, 32, "per_second"),
                    "ours, 4": of_crowd(engine.run, 4, "per_second"),
                },
                ours_over_best,
            ),
            *(
                Row(
                    f"the same, {callers} threads, {name}",
                    goal,
                    higher_is_better,
                    unit,
                    {
                        form: of_crowd(forms[form], callers, figure)
                        for form in ("ours", "1 thread, shared")
                    },
                    ratio,
                )
                for callers in (8, 32)
                for name, figure, goal, higher_is_better, unit, ratio in (
                    ("fewest calls over most", "fairness", 0.8, True, "by thread", ours),
                    ("latency", "p999_ms", 1.0, False, "p99.9 ms", ours_over_least),
                    ("another thread is late", "late_p99_ms", 1.0, False, "p99 ms", ours),
                )
            ),
        ]


LARGE: dict[str, Callable[[], str | bytes]] = {
    "ResNet-50": lambda: bundled_model("resnet50"),
    "SqueezeNet": lambda: bundled_model("squeezenet"),
    "ShuffleNet": lambda: bundled_model("shufflenet"),
    "DenseNet-121": lambda: bundled_model("densenet121"),
    "MLP 8x1024": lambda: make_mlp(1024, 8),
}


@contextmanager
def large_rows(name: str) -> Iterator[list[Row]]:
    model = LARGE[name]()
    raw = RawForms(model)
    with compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as engine:
        inputs = engine.generate_random_inputs()
        seconds = max(0.6, 60 * p50_us(lambda: engine.run(inputs), 5) / 1e6)
        forms = {
            "ours": engine.run,
            "all threads": raw.run_all_threads,
            "1 thread, shared": raw.run_shared,
            "one per stream": raw.run_per_stream,
        }
        rows = [
            Row(
                f"{name}, 4 callers",
                1.0,
                True,
                "requests/s",
                {
                    form: lambda run=run: rate(run, inputs, 4, seconds)
                    for form, run in forms.items()
                },
                ours_over_best,
            )
        ]
        if name in ("SqueezeNet", "MLP 8x1024"):
            rows.append(
                Row(
                    f"{name}, all streams busy against the sum of each alone",
                    0.97,
                    True,
                    "requests/s",
                    {
                        "ours": lambda: rate(engine.run, inputs, NUM_CORES, seconds),
                        "one alone, times streams": lambda: (
                            NUM_CORES * rate(engine.run, inputs, 1, seconds)
                        ),
                    },
                    ours_over_best,
                )
            )
        yield rows


async def open_loop_p99_ms_async(
    call: Callable[[], Awaitable[Any]], per_second: float, seconds: float, seed: int
) -> float:
    """The same from within an event loop, as in an asyncio server."""
    rng = random.Random(seed)
    latencies: list[float] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        await call()
        latencies.append(time.perf_counter() - due)

    due = time.perf_counter()
    end = due + seconds
    while due < end:
        due += rng.expovariate(per_second)
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.get_running_loop().create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return float(np.percentile(latencies, 99)) * 1e3


@contextmanager
def open_loop_rows() -> Iterator[list[Row]]:
    model = make_mlp(768, 9)  # about 1 ms on one core
    raw = RawForms(model)
    seconds = 3.0
    with compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as engine:
        inputs = engine.generate_random_inputs()
        # Of what a pool over plain onnxruntime can do while a Python thread feeds it: every form
        # gets the same load.
        per_second = 0.7 * pool_rate(raw.run_shared, inputs)
        seeds = iter(range(1_000_000))

        def by_pool(run: Callable[[Any], Any], num_threads: int) -> Callable[[], float]:
            def form() -> float:
                with ThreadPoolExecutor(num_threads) as pool:

                    def send(ended: Callable[[], None]) -> Any:
                        return pool.submit(lambda: (run(inputs), ended()))

                    return open_loop_p99_ms(send, per_second, seconds, next(seeds) // 5)

            return form

        def in_loop(call: Callable[[], Awaitable[Any]]) -> float:
            return asyncio.run(open_loop_p99_ms_async(call, per_second, seconds, next(seeds) // 5))

        def by_executor(run: Callable[[Any], Any]) -> Callable[[], float]:
            def form() -> float:
                with ThreadPoolExecutor(NUM_CORES) as pool:
                    return in_loop(
                        lambda: asyncio.get_running_loop().run_in_executor(pool, run, inputs)
                    )

            return form

        yield [
            Row(
                "1 ms model, Poisson arrivals at 70 %, thread pool",
                0.9,
                False,
                "p99 ms",
                {
                    "ours": by_pool(engine.run, 8),
                    "all threads": by_pool(raw.run_all_threads, 1),
                    "pool of one per core, shared": by_pool(raw.run_shared, NUM_CORES),
                    "pool of 8, shared": by_pool(raw.run_shared, 8),
                    "one per stream": by_pool(raw.run_per_stream, NUM_CORES),
                },
                ours_over_least,
            ),
            Row(
                "1 ms model, Poisson arrivals at 70 %, asyncio",
                0.9,
                False,
                "p99 ms",
                {
                    "ours": lambda: in_loop(lambda: engine.run_async(inputs)),
                    "executor, all threads": by_executor(raw.run_all_threads),
                    "executor, shared": by_executor(raw.run_shared),
                    "executor, one per stream": by_executor(raw.run_per_stream),
                },
                ours_over_least,
            ),
        ]


GROUPS: dict[str, Callable[[], Any]] = {
    "identity": identity_rows,
    "mlp": mlp_rows,
    "crowd": crowd_rows,
    "open_loop": open_loop_rows,
    **{name: lambda name=name: large_rows(name) for name in LARGE},
}


def show(rows: list[Row], title: str) -> None:
    table = Table(title=f"{title}, {NUM_CORES} cores: medians")
    for column in ("work", "state", "figures", "ratio", "goal", ""):
        table.add_column(column, justify="right" if column in ("ratio", "goal") else "left")
    for row in rows:
        for state, medians in row.medians.items():
            figures = ", ".join(f"{name} {value:,.4g}" for name, value in medians.items())
            table.add_row(
                row.name,
                str(state),
                f"{figures} ({row.unit})",
                f"{row.value(state):.2f}",
                f"{'>=' if row.higher_is_better else '<='} {row.goal:.2f}",
                "met" if row.is_met(state) else "missed",
            )
        if not row.medians:
            table.add_row(row.name, "-", "in no state were all measured", "-", "-", "unknown")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def plot(rows: list[Row], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.5))
    names, gains = [], []
    for row in rows:
        for state in row.medians:
            value = row.value(state)
            names.append(f"{row.name}, {state}")
            gains.append(value / row.goal if row.higher_is_better else row.goal / value)
    axes.barh(names, gains)
    axes.axvline(1.0, color="black")
    axes.invert_yaxis()
    axes.set_xlabel("figure relative to its goal (more is better; 1: just met)")
    figure.tight_layout()
    figure.savefig(path)


def run_groups(groups: dict[str, Callable[[], Any]], description: str, title: str) -> None:
    """The command line over groups of rows."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--rows", default=",".join(groups), help=f"of {', '.join(groups)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw them there; needs matplotlib")
    args = parser.parse_args()
    threading.current_thread().name = "bench"
    rows: list[Row] = []
    for name in args.rows.split(","):
        with groups[name]() as group:
            for row in group:
                row.run(args.rounds)
                rows.append(row)
                values = ", ".join(f"{row.value(it):.2f} ({it})" for it in row.medians)
                print(f"{row.name}: {values}. {row.states}", file=sys.stderr, flush=True)
    show(rows, title)
    if args.export_path:
        with open(args.export_path, "w") as file:
            json.dump(
                [
                    {
                        "work": row.name,
                        "unit": row.unit,
                        "goal": row.goal,
                        "higher_is_better": row.higher_is_better,
                        "states": {
                            str(state): {
                                "medians": medians,
                                "ratio": row.value(state),
                                "is_met": row.is_met(state),
                            }
                            for state, medians in row.medians.items()
                        },
                    }
                    for row in rows
                ],
                file,
                indent=1,
            )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_groups(GROUPS, __doc__, "The hot path")
