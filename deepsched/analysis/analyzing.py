"""analyze: what each operator takes on core groups of every width."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsched.analysis.constants import shapes_by_position
from deepsched.analysis.operators import Analysis, Operator
from deepsched.analysis.profiling import Profiled, Runs, Subject, profile, time_plain
from deepsched.analysis.reading import Key, Reading
from deepsched.analysis.work import bytes_moved, operations
from deepsched.compiled import CacheDir
from deepsched.context import Context
from deepsched.errors import OptionError
from deepsched.model import ModelLike, Shapes
from deepsched.speed import widths

# What is measured in turns, so that a disturbance hits all widths.
_NUM_ROUNDS = 3

# Of one round. A timeline has a kilobyte for each operator of each run.
_LEAST_RUNS = 3
_MOST_RUNS = 50


def analyze(
    model: ModelLike,
    batch_size: int | None = 1,
    input_shapes: Shapes | None = None,
    *,
    inputs: Any = None,
    num_cores: int | None = None,
    seconds: float = 10.0,
    cache_dir: CacheDir = "default",
    on_progress: Callable[[str], None] | None = None,
) -> Analysis:
    """Measures which operators a request's time goes into, on 1, 2, 4, ... cores and on all.

    The operators are those that ONNX Runtime makes of the model. It times each of them while one
    request runs alone; that makes the whole a little slower, which `Analysis.plain_ms` tells.

    Args:
        model, batch_size, input_shapes, cache_dir: see Engine.
        inputs: what to run, as `Engine.run` takes it; None for random ones.
        num_cores: the most cores to use; None for all that this process may use.
        seconds: about how long to measure.
        on_progress: is told what is measured next.

    Raises:
        OptionError: seconds is not a positive number.
        What Engine and `Engine.run` raise.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> analysis = analyze(bundled_model("squeezenet"), seconds=0.5)
        >>> analysis.types[0].op_type
        'Conv'
    """
    if not 0 < seconds < float("inf"):
        raise OptionError(f"seconds must be a positive number, got {seconds!r}")
    with Context(num_cores, scheduler="single_stream") as context:
        most = context.num_cores
    each = seconds / 2 / _NUM_ROUNDS / len(widths(most))
    return measure(
        Subject(model, batch_size, input_shapes, inputs, cache_dir, optimizes=True),
        widths(most),
        Runs(2, _LEAST_RUNS, _MOST_RUNS, each),
        _NUM_ROUNDS,
        on_progress or (lambda text: None),
    )


def measure(
    subject: Subject, cores: Sequence[int], runs: Runs, num_rounds: int, say: Callable[[str], None]
) -> Analysis:
    """Each number of cores in each round, with ONNX Runtime's timing and without."""
    plain: dict[int, list[float]] = {count: [] for count in cores}
    profiled: dict[int, list[Profiled]] = {count: [] for count in cores}
    with tempfile.TemporaryDirectory(prefix="deepsched-analysis-") as folder:
        if subject.cache_dir is None or not subject.optimizes:
            # A compiled form that no engine opens, but a file that tells the weights' shapes.
            subject = subject._replace(cache_dir=folder)
        for number in range(num_rounds):
            for count in cores:
                say(f"{count} core{'s' * (count > 1)} ({number + 1} of {num_rounds})")
                plain[count] += time_plain(subject, count, runs)
                profiled[count].append(profile(subject, count, runs))
    joined = {count: _join(found) for count, found in profiled.items()}
    first = profiled[cores[0]][0]
    return Analysis(
        batch_size=first.batch_size,
        operators=_operators(joined, [it for found in profiled.values() for it in found]),
        run_ms={count: float(np.mean(it.run_us)) / 1e3 for count, it in joined.items()},
        plain_ms={count: _mean_of_fast(times) for count, times in plain.items()},
    )


class _Joined(NamedTuple):
    """The faster half of the runs on some cores, of all rounds: whatever else the machine did made
    the others longer. All figures are of these same runs, so that they add up."""

    run_us: list[int]
    calls: dict[Key, float]
    """In the mean."""
    ms: dict[Key, float]
    """In the mean."""


def _join(rounds: Sequence[Profiled]) -> _Joined:
    run_us = [us for it in rounds for us in it.profile.run_us]
    fast = np.argsort(run_us, kind="stable")[: _half(len(run_us))]
    keys = dict.fromkeys(key for it in rounds for key in it.profile.operators)

    def mean(key: Key, of: Callable[[Reading], list[int]]) -> float:
        by_run: list[int] = []
        for it in rounds:  # in some rounds it may not have run at all
            found = it.profile.operators.get(key)
            by_run += [0] * len(it.profile.run_us) if found is None else of(found)
        return float(np.mean(np.asarray(by_run)[fast]))

    return _Joined(
        run_us=[run_us[run] for run in fast],
        calls={key: mean(key, lambda it: it.calls) for key in keys},
        ms={key: mean(key, lambda it: it.microseconds) / 1e3 for key in keys},
    )


def _mean_of_fast(times: Sequence[float]) -> float:
    return float(np.mean(sorted(times)[: _half(len(times))]))


def _half(count: int) -> int:
    return (count + 1) // 2


def _operators(joined: Mapping[int, _Joined], profiled: Sequence[Profiled]) -> tuple[Operator, ...]:
    keys = dict.fromkeys(key for it in joined.values() for key in it.ms)
    return tuple(_operator(key, joined, profiled) for key in keys)


def _operator(key: Key, joined: Mapping[int, _Joined], profiled: Sequence[Profiled]) -> Operator:
    reading = next(it.profile.operators[key] for it in profiled if key in it.profile.operators)
    constants = next((it.constants[key] for it in profiled if key in it.constants), None)
    calls = float(np.mean([it.calls.get(key, 0.0) for it in joined.values()]))
    inputs = shapes_by_position(reading.input_shapes, constants)
    output = reading.output_shapes[0] if reading.output_shapes else None
    per_call = operations(key.op_type, inputs, output)
    moved = bytes_moved(
        key.op_type, reading.activation_bytes, None if constants is None else constants.num_bytes
    )
    weights = () if constants is None else constants.shapes.values()
    return Operator(
        ms={cores: it.ms.get(key, 0.0) for cores, it in joined.items()},
        operations=None if per_call is None else round(per_call * calls),
        bytes_moved=None if moved is None else round(moved * calls),
        name="/".join(key.path),
        op_type=key.op_type,
        dtype=reading.dtype,
        input_shapes=tuple(inputs.get(position) for position in range(max(inputs, default=-1) + 1)),
        output_shapes=reading.output_shapes,
        weight_shape=next((shape for shape in weights if len(shape) > 1), None),
        calls=calls,
    )
