"""advise: the few settings worth trying, under the load that is asked for.

As the user's guide teaches: first how a single request gets faster with cores, then what that says
of requests side by side, then the few settings that are left.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from deepsched.advice.answer_cache import Memory
from deepsched.advice.choosing import Load, choose, cost, explain
from deepsched.advice.settings import Advice, BatchFigures, Figures, Setting
from deepsched.benchmark.measurement import Measurement, measure
from deepsched.engine import Engine
from deepsched.errors import InferenceError, InputError, ModelError, OptionError
from deepsched.integers import check_optional_integer
from deepsched.machine.contention import Neighbours, remark
from deepsched.machine.partition import most_cores
from deepsched.machine.topology import Topology
from deepsched.models.compiled import CacheDir
from deepsched.models.prepare import ModelLike, Shapes, check_batch_size, check_shapes
from deepsched.scheduling.scaling import useful_cores, widths

_OpenEngine = Callable[[Setting], Engine]
_Say = Callable[[str], None]

# Of one load on one setting.
_LEAST_SECONDS = 0.1

# At a rate: for each setting, of so many at most. A caller stands for requests of which fewer than
# one in ten finds another.
_LEAST_REQUESTS = 30
_MOST_SETTINGS = 6
_HARDLY_MEET = 0.1

# Each batch size that is tried is so many times the last, so often, as long as that gains so much.
_BATCH_STEP = 4
_BATCH_STEPS = 3
_BATCH_GAIN = 1.03


def advise(
    model: ModelLike,
    batch_size: int | None = 1,
    input_shapes: Shapes | None = None,
    *,
    num_cores: int | None = None,
    callers: int | None = None,
    rate: float | None = None,
    p99_limit_ms: float | None = None,
    seconds: float = 20.0,
    compares_batches: bool = True,
    remembers: bool = True,
    cache_dir: CacheDir = "default",
    on_progress: Callable[[str], None] | None = None,
) -> Advice:
    """Measures which setting serves a model best on this machine.

    Args:
        model, batch_size, input_shapes, cache_dir: see Engine.
        num_cores: the most cores to use; None for all that this process may use.
        callers: the load: as many threads, each of which sends the next request when it has its
            answer. None, without a rate: two for each core, which keep everything busy.
        rate: the load instead: requests a second, at random times. Where they hardly ever meet, and
            are too few to measure, one caller stands for them.
        p99_limit_ms: settings whose 99th percentile is above that are out, if any is not.
        seconds: about how long to measure.
        compares_batches: without callers, a rate, or input_shapes (there is a batch in these), try
            larger requests as well.
        remembers: look for, and keep, the result for this model, machine, load and these versions
            in the cache folder; not kept if other processes took a tenth of the CPUs or more.
        on_progress: is told what is measured next.

    Returns:
        The setting with the most items a second (for a lone caller with the least median latency,
        at a rate with the least mean latency); of those that are within 3 % of it (at a rate 5 %),
        the simplest: elastic, single_stream, multi_stream; and no more cores than help.

    Raises:
        OptionError: callers and rate together, values that make no sense, or too few seconds for a
            low rate.
        What Engine raises.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> advise(bundled_model("squeezenet"), callers=1, seconds=1.0).load
        '1 caller'
    """
    batch_size = check_batch_size(batch_size)
    input_shapes = check_shapes(input_shapes)
    callers = check_optional_integer("callers", callers, 1)
    _check(callers, rate, p99_limit_ms, seconds)
    began = time.monotonic()
    say = on_progress or (lambda text: None)
    has_open_load = callers is None and rate is None
    compares_batches = (
        compares_batches and has_open_load and bool(batch_size) and input_shapes is None
    )
    most = most_cores(Topology.detect(), num_cores)
    num_cores = None if num_cores is None else most
    load = Load(2 * most if has_open_load else callers, rate)
    question = [batch_size, input_shapes, num_cores, str(load), p99_limit_ms]
    memory = Memory.of(model, cache_dir, question) if remembers else None
    if memory is not None and (known := memory.recall(seconds, compares_batches)) is not None:
        return known

    def open_batched(batch_size: int | None, setting: Setting) -> Engine:
        return Engine(
            model,
            batch_size,
            setting.num_cores,
            setting.num_streams,
            setting.scheduler,
            input_shapes,
            cache_dir=cache_dir,
        )

    neighbours = Neighbours()
    open_engine = functools.partial(open_batched, batch_size)
    scaling = _scaling(open_engine, most, seconds / 4, say)
    load = _measurable(load, scaling, seconds)
    candidates = _candidates(scaling, most, num_cores, load)
    figures = _compare(candidates, open_engine, load, 0.6 * seconds, say)
    chosen, as_good = choose(figures, load, p99_limit_ms)
    batches = (
        _batches(chosen, batch_size, open_batched, load, p99_limit_ms, 0.05 * seconds, say)
        if compares_batches and batch_size
        else ()
    )
    default = next(it for it in figures if it.setting == candidates[0])
    advice = Advice(
        setting=chosen.setting,
        batch_size=batch_size,
        input_shapes=input_shapes,
        reason=explain(chosen, as_good, scaling, load, p99_limit_ms),
        cost_of_ignoring=cost(chosen, as_good, default, load),
        figures=tuple(sorted(figures, key=lambda it: (not it.keeps_up, load.key(it)))),
        batches=batches,
        scaling_ms=scaling,
        load=str(load),
        seconds=time.monotonic() - began,
        others_share=neighbours.share(),
    )
    if memory is not None and not remark(advice.others_share):
        memory.keep(advice, seconds)
    return advice


def _check(
    callers: int | None, rate: float | None, p99_limit_ms: float | None, seconds: float
) -> None:
    if callers is not None and rate is not None:
        raise OptionError("give callers (a closed loop) or rate (requests a second), not both")
    for name, value in (("rate", rate), ("p99_limit_ms", p99_limit_ms), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(f"{name} must be a positive number, got {value!r}")


def _scaling(open_engine: _OpenEngine, most: int, seconds: float, say: _Say) -> dict[int, float]:
    """The median latency of a lone request by cores, ms; stops where more cores do not help."""
    each = seconds / 2 / len(widths(most))
    scaling: dict[int, float] = {}
    for cores in widths(most):
        say(f"a lone request on {cores} core{'s' * (cores > 1)}")
        scaling[cores] = _lone_ms(open_engine, cores, each, warns=cores == 1)
        narrower = [value for width, value in scaling.items() if width < cores]
        if narrower and scaling[cores] > 1.1 * min(narrower):
            break  # it gets slower: wider ones do so too
    # Once more: what else the machine did meanwhile only ever adds to a time.
    return {cores: min(ms, _lone_ms(open_engine, cores, each)) for cores, ms in scaling.items()}


def _lone_ms(open_engine: _OpenEngine, cores: int, seconds: float, warns: bool = False) -> float:
    with open_engine(Setting("single_stream", None, cores)) as engine:
        inputs = engine._tried_inputs(warns)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            engine.run(inputs)
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def _measurable(load: Load, scaling: dict[int, float], seconds: float) -> Load:
    """The load, if there is time for enough requests of it; else one caller, if requests of that
    rate hardly meet.

    Raises:
        OptionError: they do meet, and it takes more seconds.
    """
    each = 0.6 * seconds / _MOST_SETTINGS
    if load.rate is None or load.rate * each >= _LEAST_REQUESTS:
        return load
    if load.rate * max(scaling.values()) / 1e3 < _HARDLY_MEET:
        return Load(1, None, load.rate)
    enough = math.ceil(seconds * _LEAST_REQUESTS / (load.rate * each))
    raise OptionError(
        f"in {seconds:g} seconds there are too few requests at {load.rate:g} a second to tell "
        f"settings apart; give seconds={enough} or more (on the command line --seconds {enough})"
    )


def _candidates(
    scaling: dict[int, float], most: int, num_cores: int | None, load: Load
) -> list[Setting]:
    """The default first; then, pruned by the curve, the multi_streams that promise most."""
    candidates = [Setting("single_stream", None, num_cores)]
    if most == 1:
        return candidates  # all of them are this one
    candidates.append(Setting("elastic", None, num_cores))
    enough = useful_cores(scaling)
    if enough < most:
        candidates.append(Setting("single_stream", None, enough))

    def run_ms(streams: int) -> float:
        """On the widest group that was measured, of those that are no wider."""
        return scaling[max(cores for cores in scaling if cores <= most // streams)]

    def promise(streams: int) -> float:
        """Runs a ms, with no more of them at a time than there are requests."""
        return min(streams, load.num_at_once(run_ms(streams))) / run_ms(streams)

    counts = {most // cores for cores in scaling} | set(widths(most))
    if load.callers is not None:
        counts.add(min(load.callers, most))
    by_promise = sorted(counts - {1}, key=lambda streams: (-promise(streams), streams))
    if load.callers != 1:
        candidates += [Setting("multi_stream", streams, num_cores) for streams in by_promise[:3]]
    return candidates


def _compare(
    candidates: Sequence[Setting], open_engine: _OpenEngine, load: Load, seconds: float, say: _Say
) -> list[Figures]:
    """Each under the load, in turns, so that a disturbance hits all."""
    num_rounds = 3
    each = max(_LEAST_SECONDS, seconds / num_rounds / len(candidates))
    seen: dict[Setting, list[Measurement]] = {setting: [] for setting in candidates}
    num_streams: dict[Setting, int] = {}
    for number in range(num_rounds):
        for setting in candidates:
            say(f"{setting}, {load} ({number + 1} of {num_rounds})")
            with open_engine(setting) as engine:
                num_streams[setting] = engine.num_streams
                seen[setting].append(_put_on(engine, load, each, seed=number))
    return [
        Figures(
            setting,
            num_streams[setting],
            statistics.median(it.items_per_sec for it in measured),
            statistics.median(float(np.mean(it.latencies_ms)) for it in measured),
            statistics.median(it.percentile(50) for it in measured),
            statistics.median(it.percentile(99) for it in measured),
            statistics.median(it.iterations / (it.iterations + it.num_dropped) for it in measured),
            statistics.median(it.keeps_up for it in measured) > 0.5,
        )
        for setting, measured in seen.items()
    ]


def _put_on(engine: Engine, load: Load, seconds: float, seed: int = 0) -> Measurement:
    """`seed`: of the random times, the same for all that are compared."""
    measured = measure(
        engine,
        callers=load.callers,
        rate=load.rate,
        poisson=load.rate is not None,
        seed=seed,
        seconds=seconds,
        warmup_seconds=0.1 * seconds,
        # What is so late shows that the rate is too high; it need not be waited for.
        max_late_seconds=0.3 * seconds,
    )
    if measured.is_interrupted:  # Ctrl-C: a part of the figures is no advice
        raise KeyboardInterrupt
    return measured


def _batches(
    chosen: Figures,
    batch_size: int,
    open_batched: Callable[[int, Setting], Engine],
    load: Load,
    p99_limit_ms: float | None,
    seconds: float,
    say: _Say,
) -> tuple[BatchFigures, ...]:
    """Larger requests with the chosen setting, as long as they gain and stay within the limit."""
    found = [BatchFigures(batch_size, chosen.items_per_sec, chosen.p50_ms)]
    for _ in range(_BATCH_STEPS):
        batch_size *= _BATCH_STEP
        say(f"{chosen.setting}, batches of {batch_size}")
        try:
            # Tried alone first: an elastic engine would log that it cannot be measured.
            with open_batched(batch_size, Setting("single_stream", None, 1)) as engine:
                engine._tried_inputs()
            with open_batched(batch_size, chosen.setting) as engine:
                measured = _put_on(engine, load, max(_LEAST_SECONDS, seconds))
        except (ModelError, InputError, InferenceError):
            break  # its shapes are fixed, or something in it relies on the batch
        if p99_limit_ms is not None and measured.percentile(99) > p99_limit_ms:
            break
        found.append(BatchFigures(batch_size, measured.items_per_sec, measured.percentile(50)))
        if found[-1].items_per_sec < _BATCH_GAIN * found[-2].items_per_sec:
            break
    return tuple(found)
