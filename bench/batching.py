"""What running requests together gains, and that it costs nothing where it does not.

    python -m bench.batching [--rows mlp_large,recommender] [--rounds 5] [-x out.json]

Measured and shown as in bench.hot_path: forms take turns, and figures of one state of the machine
are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.elastic import MODELS, SCHEDULERS
from bench.hot_path import (
    Row,
    asyncio_rate,
    loop_rate,
    map_rate,
    ours_over_best,
    ours_over_least,
    rate,
    run_groups,
)
from bench.models import find, make_mlp, make_recommender
from bench.peers import NUM_CORES, RawForms
from deepsched import compile_model
from deepsched.benchmark import measure

_SECONDS = 0.6
_SECONDS_OF_SLOW_MODELS = 3.0  # some serve 25 requests/s
_CALLERS = (1, 2, 4, 8, 16, 32, 64)

# Nothing to gain: convolutions and long texts have work enough for every weight in one request.
_INDIFFERENT = ("squeezenet", "resnet50", "minilm_l3", "ppocr_v4_rec")


def _raw_runs(model: str | bytes) -> dict[str, Callable[[Any], Any]]:
    raw = RawForms(model)
    return {
        "all threads": raw.run_all_threads,
        "1 thread, shared": raw.run_shared,
        "one per stream": raw.run_per_stream,
    }


def _rates(
    runs: dict[str, Callable[[Any], Any]],
    inputs: list[Any],
    callers: int,
    seconds: float = _SECONDS,
) -> dict[str, Callable[[], float]]:
    return {name: lambda run=run: rate(run, inputs, callers, seconds) for name, run in runs.items()}


@contextmanager
def large_mlp_rows() -> Iterator[list[Row]]:
    model = make_mlp(1024, 8)
    with compile_model(model) as engine, compile_model(model, batching="off") as alone:
        inputs = engine.generate_random_inputs()
        runs = {"ours": engine.run, "ours, batching off": alone.run, **_raw_runs(model)}
        yield [
            Row(
                f"MLP 8x1024, {callers} callers, default options",
                goal,
                True,
                "requests/s",
                _rates(runs, inputs, callers),
                _over_raw,
            )
            for callers, goal in ((4, 1.3), (16, 2.5), (64, 4.0))
        ]


def _over_raw(medians: dict[str, float]) -> float:
    return medians["ours"] / max(of for name, of in medians.items() if not name.startswith("ours"))


@contextmanager
def recommender_rows() -> Iterator[list[Row]]:
    model = make_recommender()
    with compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as engine:
        inputs = engine.generate_random_inputs()
        runs = {"ours": engine.run, **_raw_runs(model)}

        def p99_ms(run: Callable[[Any], Any]) -> float:
            result = measure(run, inputs, callers=64, seconds=_SECONDS, warmup_seconds=0.1)
            return float(result.percentile(99))

        yield [
            Row(
                "recommender, 64 callers",
                2.5,
                True,
                "requests/s",
                _rates(runs, inputs, 64),
                ours_over_best,
            ),
            Row(
                "the same, 99th percentile",
                1.0,
                False,
                "ms",
                {name: lambda run=run: p99_ms(run) for name, run in runs.items()},
                ours_over_least,
            ),
        ]


@contextmanager
def small_mlp_rows() -> Iterator[list[Row]]:
    model = make_mlp()
    raw = RawForms(model)
    with compile_model(model, scheduler="multi_stream", num_streams=min(2, NUM_CORES)) as engine:
        inputs = engine.generate_random_inputs()
        feed = raw.feed(inputs)
        yield [
            Row(
                "MLP 3x128, map from one thread",
                5.0,
                True,
                "requests/s",
                {
                    "ours": lambda: map_rate(engine, inputs),
                    "run in a loop": lambda: loop_rate(lambda: engine.run(inputs)),
                },
                ours_over_best,
            ),
            Row(
                "MLP 3x128, asyncio, 64 in flight",
                2.0,
                True,
                "requests/s",
                {
                    "ours": lambda: asyncio_rate(engine, inputs, 64),
                    "run in a loop": lambda: loop_rate(lambda: raw.shared.run(None, feed)),
                },
                ours_over_best,
            ),
        ]


@contextmanager
def indifferent_rows(name: str) -> Iterator[list[Row]]:
    model = find(name)
    options: dict[str, Any] = {"scheduler": "multi_stream", "num_streams": NUM_CORES}
    with (
        compile_model(model, **options) as auto,
        compile_model(model, batching="off", **options) as off,
    ):
        inputs = auto.generate_random_inputs()
        yield [
            Row(
                f"{name}, {callers} callers, auto against off",
                0.99,
                True,
                "requests/s",
                _rates(
                    {"ours": auto.run, "off": off.run}, inputs, callers, _SECONDS_OF_SLOW_MODELS
                ),
                ours_over_best,
            )
            for callers in (1, 4, 16, 64)
        ]


@contextmanager
def elastic_rows(name: str) -> Iterator[list[Row]]:
    """Elastic against the best fixed setting, all with batching."""
    model = MODELS[name]()
    engines = {
        scheduler: compile_model(
            model,
            scheduler=scheduler,
            num_streams=None if scheduler == "single_stream" else NUM_CORES,
        )
        for scheduler in SCHEDULERS
    }
    try:
        inputs = engines["elastic"].generate_random_inputs()
        runs = {
            "ours" if scheduler == "elastic" else scheduler: engine.run
            for scheduler, engine in engines.items()
        }
        yield [
            Row(
                f"{name}, elastic, {callers} callers",
                0.97,
                True,
                "requests/s",
                _rates(runs, inputs, callers),
                ours_over_best,
            )
            for callers in _CALLERS
        ]
    finally:
        for engine in engines.values():
            engine.close()


GROUPS: dict[str, Callable[[], Any]] = {
    "mlp_large": large_mlp_rows,
    "recommender": recommender_rows,
    "mlp_small": small_mlp_rows,
    **{name: lambda name=name: indifferent_rows(name) for name in _INDIFFERENT},
    "elastic": lambda: elastic_rows("mlp"),
}


if __name__ == "__main__":
    run_groups(GROUPS, __doc__, "Batches")
