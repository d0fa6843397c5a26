"""analyze: times each operator on core groups of every width."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsched.analysis.calibration import overhead_us
from deepsched.analysis.constants import NodeConstants, shapes_by_position
from deepsched.analysis.operators import Analysis, Operator
from deepsched.analysis.profiling import (
    ProfiledRuns,
    ProfilingTarget,
    RunBudget,
    profile,
    time_plain,
)
from deepsched.analysis.reading import OperatorCall, OperatorKey, OperatorProfile
from deepsched.analysis.work import NEED_POSITIONS, bytes_moved, operations
from deepsched.errors import OptionError
from deepsched.machine.contention import ContentionMonitor
from deepsched.machine.partition import most_cores, partition
from deepsched.machine.state import Conditions, by_complete_state, neighbour_trips_ns
from deepsched.machine.topology import Topology
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.custom_ops import CustomOps
from deepsched.models.locations import (
    DEFAULT_CACHE,
    CacheDir,
    keeps_in_memory,
    temporary_folder,
)
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.scheduling.scaling import widths

# All widths are measured in turns, so that a disturbance affects each of them.
_NUM_ROUNDS = 3

# Runs of one width in one round.
_MIN_RUNS = 3
_MAX_RUNS = 50


def analyze(
    model: ModelLike,
    batch_size: BatchSize = AUTO,
    input_shapes: Shapes | None = None,
    *,
    inputs: Any = None,
    num_cores: int | None = None,
    seconds: float = 10.0,
    cache_dir: CacheDir = DEFAULT_CACHE,
    custom_ops: CustomOps = (),
    rewrites: str = "fast",
    on_progress: Callable[[str], None] | None = None,
) -> Analysis:
    """Profiles a model: the time of each operator on 1, 2, 4, ... cores and on all.

    The operators are those that ONNX Runtime optimises the model to. One request runs at a time.
    Profiling makes it slower; see Analysis.

    Args:
        model, batch_size, input_shapes, cache_dir, custom_ops, rewrites: see Engine.
        inputs: the inputs to run, as `Engine.run` takes them; None for random ones.
        num_cores: the maximum number of cores; None for all that this process may use.
        seconds: approximate duration. Opening the model, four times at least, comes on top.
        on_progress: called with a description of each measurement before it begins.

    Returns:
        Times of operators, of operator types and of whole requests, by number of cores.

    Raises:
        OptionError: seconds is not a positive number.
        ModelError: a run has more operator calls than ONNX Runtime's profiler keeps.
        The exceptions of Engine and `Engine.run`.

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
    return profile_widths(
        ProfilingTarget(
            model, batch_size, input_shapes, inputs, cache_dir, True, tuple(custom_ops), rewrites
        ),
        cores,
        RunBudget(2, _MIN_RUNS, _MAX_RUNS, each),
        _NUM_ROUNDS,
        seconds,
        on_progress or (lambda text: None),
    )


def profile_widths(
    target: ProfilingTarget,
    cores: Sequence[int],
    budget: RunBudget,
    num_rounds: int,
    seconds: float,
    on_progress: Callable[[str], None],
) -> Analysis:
    """Profiles the target on each number of cores, in rounds.

    Args:
        target: the model, and its inputs.
        cores: the numbers of cores.
        budget: the runs of each number of cores in a round, once with the profiler, once without.
        num_rounds: how many rounds; no further one begins after `seconds`.
        seconds: see num_rounds.
        on_progress: see `analyze`.
    """
    seen: list[Conditions] = []
    measured: list[tuple[int, _Round]] = []
    overhead: dict[int, float] = {}
    is_on_disk = isinstance(target.model, (str, os.PathLike))
    with temporary_folder(in_memory=not is_on_disk) as folder:
        own_cache = str(folder.path)
        is_kept = not (target.cache_dir is None or keeps_in_memory(target.model, target.cache_dir))
        if not is_kept or not target.optimizes:
            # The shapes of the weights are read from a compiled file. Engines would never open an
            # unoptimised one: keep it out of the user's cache.
            target = target._replace(cache_dir=own_cache)
        whole = partition(Topology.detect(), max(cores), 1)
        in_use = {cpu for stream in whole.streams for core in stream.cores for cpu in core.cpus}
        first_cpus = [core.cpus[0] for stream in whole.streams for core in stream.cores]
        began, contention = time.monotonic(), ContentionMonitor(in_use)
        for number in range(num_rounds):
            if number and time.monotonic() > began + seconds:
                break
            for count in cores:
                on_progress(f"{count} core{'s' * (count > 1)} ({number + 1} of {num_rounds})")
                before = neighbour_trips_ns(first_cpus)
                plain = time_plain(target, count, budget, not measured, contention.sample)
                profiled = profile(target, count, budget, contention.sample)
                measured.append((count, _Round(plain, profiled)))
                # others_share is told for all of it.
                seen.append(Conditions(before, neighbour_trips_ns(first_cpus), None))
                # The minimum: disturbances only ever add to it.
                overhead[count] = min(overhead_us(count, own_cache), overhead.get(count, math.inf))
    by_state = by_complete_state(seen, measured)
    state = next(iter(by_state), None)
    compared = {
        count: [it for width, it in measured if width == count]
        if state is None
        else by_state[state][count]
        for count in cores
    }
    fastest = {
        count: _fastest_runs([it.profiled for it in rounds]) for count, rounds in compared.items()
    }
    every = [it.profiled for _, it in measured]
    keys = dict.fromkeys(key for it in fastest.values() for key in it.microseconds)
    return Analysis(
        batch_size=every[0].batch_size,
        operators=tuple(_operator(key, fastest, overhead, every) for key in keys),
        run_ms={count: float(np.mean(it.run_us)) / 1e3 for count, it in fastest.items()},
        plain_ms={
            count: _mean_of_fastest([ms for it in rounds for ms in it.plain_ms])
            for count, rounds in compared.items()
        },
        others_share=contention.others_share(),
        steal_share=contention.steal_share(),
        state=None if state is None else str(state),
        rewrites=every[0].rewrites,
    )


class _Round(NamedTuple):
    """What was measured on some number of cores, once."""

    plain_ms: list[float]
    profiled: ProfiledRuns


class _FastestRuns(NamedTuple):
    """The faster half of the runs on some number of cores, over all rounds.

    The others were slowed down by other work on the machine. Runs are chosen as a whole, not by
    operator, so that the operators' times add up to the run's.
    """

    run_us: list[int]
    num_calls: dict[OperatorKey, float]
    """Mean over these runs."""
    microseconds: dict[OperatorKey, float]
    """Mean over these runs."""


def _fastest_runs(rounds: Sequence[ProfiledRuns]) -> _FastestRuns:
    run_us = [us for it in rounds for us in it.profile.run_us]
    fast = np.argsort(run_us, kind="stable")[: _half(len(run_us))]
    keys = dict.fromkeys(key for it in rounds for key in it.profile.operators)
    return _FastestRuns(
        run_us=[run_us[run] for run in fast],
        num_calls={key: _mean(rounds, key, fast, lambda it: it.num_calls) for key in keys},
        microseconds={key: _mean(rounds, key, fast, lambda it: it.microseconds) for key in keys},
    )


def _mean(
    rounds: Sequence[ProfiledRuns],
    key: OperatorKey,
    runs: Any,
    values: Callable[[OperatorProfile], list[int]],
) -> float:
    """Mean of an operator's value over the given runs; 0 in those in which it did not run."""
    by_run: list[int] = []
    for it in rounds:
        found = it.profile.operators.get(key)
        by_run += [0] * len(it.profile.run_us) if found is None else values(found)
    return float(np.mean(np.asarray(by_run)[runs]))


def _mean_of_fastest(times: Sequence[float]) -> float:
    return float(np.mean(sorted(times)[: _half(len(times))]))


def _half(count: int) -> int:
    return (count + 1) // 2


def _operator(
    key: OperatorKey,
    fastest: Mapping[int, _FastestRuns],
    overhead: Mapping[int, float],
    profiled: Sequence[ProfiledRuns],
) -> Operator:
    constants = next((it.constants[key] for it in profiled if key in it.constants), None)
    calls: Counter[OperatorCall] = Counter()
    for it in profiled:
        if key in it.profile.operators:
            calls += it.profile.operators[key].calls
    num_runs = sum(len(it.profile.run_us) for it in profiled)
    ((example, _),) = calls.most_common(1)
    inputs = shapes_by_position(example.input_shapes, constants)
    weights = () if constants is None else constants.shapes.values()
    timing_ms = {
        cores: overhead[cores] * it.num_calls.get(key, 0.0) / 1e3 for cores, it in fastest.items()
    }
    return Operator(
        ms={
            cores: max(0.0, it.microseconds.get(key, 0.0) / 1e3 - timing_ms[cores])
            for cores, it in fastest.items()
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
    calls: Counter[OperatorCall], num_runs: int, count: Callable[[OperatorCall], int | None]
) -> int | None:
    """Mean per run of a count, summed over all calls, whose shapes may differ; None if unknown."""
    total = 0
    for call, number in calls.items():
        each = count(call)
        if each is None:
            return None
        total += number * each
    return round(total / num_runs)


def _operations(
    key: OperatorKey, call: OperatorCall, constants: NodeConstants | None
) -> int | None:
    if constants is None and key.op_type in NEED_POSITIONS:
        return None
    output = call.output_shapes[0] if call.output_shapes else None
    return operations(key.op_type, shapes_by_position(call.input_shapes, constants), output)


def _bytes_moved(
    key: OperatorKey, call: OperatorCall, constants: NodeConstants | None
) -> int | None:
    num_bytes = None if constants is None else constants.num_bytes
    return bytes_moved(key.op_type, call.activation_bytes, num_bytes)
