"""analyze: what each operator takes on core groups of every width."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsched.analysis.calibration import timing_us
from deepsched.analysis.constants import NodeConstants, shapes_by_position
from deepsched.analysis.operators import Analysis, Operator
from deepsched.analysis.profiling import Profiled, Runs, Subject, profile, time_plain
from deepsched.analysis.reading import Call, Key, Reading
from deepsched.analysis.work import NEED_POSITIONS, bytes_moved, operations
from deepsched.errors import OptionError
from deepsched.machine.contention import Neighbours
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.models.locations import DEFAULT_CACHE, CacheDir
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.scheduling.scaling import widths

# What is measured in turns, so that a disturbance hits all widths.
_NUM_ROUNDS = 3

# Of one round.
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
    cache_dir: CacheDir = DEFAULT_CACHE,
    on_progress: Callable[[str], None] | None = None,
) -> Analysis:
    """Measures which operators a request's time goes into, on 1, 2, 4, ... cores and on all.

    The operators are those that ONNX Runtime makes of the model. It times each of them while one
    request runs alone, which takes longer; see Analysis.

    Args:
        model, batch_size, input_shapes, cache_dir: see Engine.
        inputs: what to run, as `Engine.run` takes it; None for random ones.
        num_cores: the most cores to use; None for all that this process may use.
        seconds: about how long to measure. Opening the model, four times at least, comes on top.
        on_progress: is told what is measured next.

    Raises:
        OptionError: seconds is not a positive number.
        ModelError: a run has more operators than ONNX Runtime's timeline has room for.
        What Engine and `Engine.run` raise.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> analysis = analyze(bundled_model("squeezenet"), seconds=0.5)
        >>> analysis.types[0].op_type
        'Conv'
    """
    if not 0 < seconds < float("inf"):
        raise OptionError(f"seconds must be a positive number, got {seconds!r}")
    cores = widths(most_cores(Topology.detect(), num_cores))
    each = seconds / 2 / _NUM_ROUNDS / len(cores)
    return measure(
        Subject(model, batch_size, input_shapes, inputs, cache_dir, optimizes=True),
        cores,
        Runs(2, _LEAST_RUNS, _MOST_RUNS, each),
        _NUM_ROUNDS,
        seconds,
        on_progress or (lambda text: None),
    )


def measure(
    subject: Subject,
    cores: Sequence[int],
    runs: Runs,
    num_rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Analysis:
    """Each number of cores in each round, with ONNX Runtime's timing and without; no more rounds
    once `seconds` have passed."""
    plain: dict[int, list[float]] = {count: [] for count in cores}
    profiled: dict[int, list[Profiled]] = {count: [] for count in cores}
    timing: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="deepsched-analysis-") as folder:
        if subject.cache_dir is None or not subject.optimizes:
            # A compiled form that no engine opens, but a file that tells the weights' shapes.
            subject = subject._replace(cache_dir=folder)
        began, neighbours = time.monotonic(), Neighbours()
        for number in range(num_rounds):
            if number and time.monotonic() > began + seconds:
                break
            for count in cores:
                say(f"{count} core{'s' * (count > 1)} ({number + 1} of {num_rounds})")
                plain[count] += time_plain(subject, count, runs, warns=not plain[cores[0]])
                profiled[count].append(profile(subject, count, runs))
                timing[count] = min(timing_us(count, folder), timing.get(count, math.inf))
    joined = {count: _join(found) for count, found in profiled.items()}
    every = [it for found in profiled.values() for it in found]
    keys = dict.fromkeys(key for it in joined.values() for key in it.microseconds)
    return Analysis(
        batch_size=every[0].batch_size,
        operators=tuple(_operator(key, joined, timing, every) for key in keys),
        run_ms={count: float(np.mean(it.run_us)) / 1e3 for count, it in joined.items()},
        plain_ms={count: _mean_of_fast(times) for count, times in plain.items()},
        others_share=neighbours.share(),
    )


class _Joined(NamedTuple):
    """The faster half of the runs on some cores, of all rounds: whatever else the machine did made
    the others longer. All figures are of these same runs, so that they add up."""

    run_us: list[int]
    num_calls: dict[Key, float]
    """In the mean."""
    microseconds: dict[Key, float]
    """In the mean."""


def _join(rounds: Sequence[Profiled]) -> _Joined:
    run_us = [us for it in rounds for us in it.profile.run_us]
    fast = np.argsort(run_us, kind="stable")[: _half(len(run_us))]
    keys = dict.fromkeys(key for it in rounds for key in it.profile.operators)
    return _Joined(
        run_us=[run_us[run] for run in fast],
        num_calls={key: _mean(rounds, key, fast, lambda it: it.num_calls) for key in keys},
        microseconds={key: _mean(rounds, key, fast, lambda it: it.microseconds) for key in keys},
    )


def _mean(
    rounds: Sequence[Profiled], key: Key, runs: Any, of: Callable[[Reading], list[int]]
) -> float:
    """Over these runs of all rounds; in some rounds the operator may not have run at all."""
    by_run: list[int] = []
    for it in rounds:
        found = it.profile.operators.get(key)
        by_run += [0] * len(it.profile.run_us) if found is None else of(found)
    return float(np.mean(np.asarray(by_run)[runs]))


def _mean_of_fast(times: Sequence[float]) -> float:
    return float(np.mean(sorted(times)[: _half(len(times))]))


def _half(count: int) -> int:
    return (count + 1) // 2


def _operator(
    key: Key,
    joined: Mapping[int, _Joined],
    timing: Mapping[int, float],
    profiled: Sequence[Profiled],
) -> Operator:
    constants = next((it.constants[key] for it in profiled if key in it.constants), None)
    calls: Counter[Call] = Counter()
    for it in profiled:
        if key in it.profile.operators:
            calls += it.profile.operators[key].calls
    num_runs = sum(len(it.profile.run_us) for it in profiled)
    ((example, _),) = calls.most_common(1)
    inputs = shapes_by_position(example.input_shapes, constants)
    weights = () if constants is None else constants.shapes.values()
    timing_ms = {
        cores: timing[cores] * it.num_calls.get(key, 0.0) / 1e3 for cores, it in joined.items()
    }
    return Operator(
        ms={
            cores: max(0.0, it.microseconds.get(key, 0.0) / 1e3 - timing_ms[cores])
            for cores, it in joined.items()
        },
        timing_ms=timing_ms,
        operations=_per_run(calls, num_runs, lambda it: _operations(key, it, constants)),
        bytes_moved=_per_run(calls, num_runs, lambda it: _bytes_moved(key, it, constants)),
        name="/".join(key.path),
        op_type=key.op_type,
        dtype=example.dtype,
        input_shapes=tuple(inputs.get(position) for position in range(max(inputs, default=-1) + 1)),
        output_shapes=example.output_shapes,
        weight_shape=next((shape for shape in weights if len(shape) > 1), None),
        calls=calls.total() / num_runs,
    )


def _per_run(
    calls: Counter[Call], num_runs: int, count: Callable[[Call], int | None]
) -> int | None:
    """The sum over all calls, whose shapes may differ, of one run; None if one is not known."""
    total = 0
    for call, number in calls.items():
        each = count(call)
        if each is None:
            return None
        total += number * each
    return round(total / num_runs)


def _operations(key: Key, call: Call, constants: NodeConstants | None) -> int | None:
    if constants is None and key.op_type in NEED_POSITIONS:
        return None
    output = call.output_shapes[0] if call.output_shapes else None
    return operations(key.op_type, shapes_by_position(call.input_shapes, constants), output)


def _bytes_moved(key: Key, call: Call, constants: NodeConstants | None) -> int | None:
    num_bytes = None if constants is None else constants.num_bytes
    return bytes_moved(key.op_type, call.activation_bytes, num_bytes)
