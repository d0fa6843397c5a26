"""advise: measures the few promising settings under a load, and recommends one.

In three steps, as in the user's guide: how a lone request scales with cores; which settings that
makes promising; these under the load.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from deepsched.advice.answer_cache import AnswerCache
from deepsched.advice.choosing import (
    Load,
    choose,
    compare_default,
    explain,
    explain_too_few,
)
from deepsched.advice.planning import (
    COMPARISON_SHARE,
    MAX_EXTENSION,
    Plan,
    plan,
    throughput,
)
from deepsched.advice.replicas import plan_replicas
from deepsched.advice.settings import (
    Advice,
    BatchFigures,
    Figures,
    Replicas,
    Setting,
    StateAnswer,
)
from deepsched.advice.states import Results, comparable, count, split
from deepsched.benchmark.measurement import Measurement, measure
from deepsched.benchmark.percentiles import latency_percentile, requests_for
from deepsched.checks import check_optional_integer
from deepsched.engine import Engine
from deepsched.errors import InferenceError, InputError, ModelError, OptionError
from deepsched.machine.contention import ContentionMonitor
from deepsched.machine.partition import most_cores, partition
from deepsched.machine.topology import Topology
from deepsched.models.batch import AUTO, BatchSize, check_batch_size
from deepsched.models.batching.option import BatchingOption, check_batching
from deepsched.models.custom_ops import CustomOps, check_custom_ops
from deepsched.models.locations import (
    DEFAULT_CACHE,
    CacheDir,
    keeps_in_memory,
    temporary_folder,
)
from deepsched.models.prepare import ModelLike, Shapes, check_shapes
from deepsched.models.random_inputs import tried_inputs
from deepsched.models.rewrites.option import check_rewrites
from deepsched.scheduling.scaling import useful_cores, widths

_OpenEngine = Callable[[Setting], Engine]
_OnProgress = Callable[[str], None]

logger = logging.getLogger("deepsched")

_MIN_SECONDS = 0.1  # of one measurement of one setting

# At an arrival rate, each setting must get this many requests; there are at most so many settings.
_MIN_ARRIVALS = 30
_MAX_SETTINGS = 6
# One caller stands in for a rate at which fewer requests than this share find another one running.
_RARE_OVERLAP = 0.1

# Batch sizes grow by this factor, in so many steps, while throughput gains at least this much.
_BATCH_STEP = 4
_BATCH_STEPS = 3
_BATCH_GAIN = 1.03
_MIN_BATCHES = 10  # requests of each batch size

# Runs of a lone request, unless they take so many times the time for them.
_MIN_RUNS = 3
_MAX_OVERTIME = 4


def advise(
    model: ModelLike,
    batch_size: BatchSize = AUTO,
    input_shapes: Shapes | None = None,
    *,
    num_cores: int | None = None,
    callers: int | None = None,
    rate: float | None = None,
    p99_limit_ms: float | None = None,
    seconds: float = 20.0,
    compares_batches: bool = True,
    remembers: bool = True,
    cache_dir: CacheDir = DEFAULT_CACHE,
    custom_ops: CustomOps = (),
    rewrites: str = "fast",
    batching: BatchingOption = "auto",
    on_progress: Callable[[str], None] | None = None,
) -> Advice:
    """Measures which setting serves a model best on this machine.

    Args:
        model, batch_size, input_shapes, cache_dir, custom_ops, rewrites, batching: see Engine.
        num_cores: the maximum number of cores; None for all that this process may use.
        callers: the load as a closed loop: this many threads, each of which sends its next request
            when the last one is answered. None, without a rate: two per core, which keep all busy.
        rate: the load as an open loop: Poisson arrivals, in requests per second. If requests rarely
            overlap, and are too few to measure, one caller stands in for them.
        p99_limit_ms: excludes settings with a p99 latency above that, unless all have. A p99 takes
            300 requests of each setting. With a rate, `replicas` of the advice say how many
            processes of how many cores serve it so.
        seconds: approximate duration. A slow model takes up to 6 times that, which is logged
            before, so that each setting gets 20 requests. If that is not enough, the default is
            recommended; `enough_seconds` of the advice says what would be.
        compares_batches: also measure larger batch sizes; only without callers, rate and
            input_shapes (which contain the batch size).
        remembers: look the answer up in the cache folder, by model, machine, load and versions, and
            keep it there; not kept if other processes used 10 % of a CPU or more, there were too
            few requests to tell, or states of the machine have different answers.
        on_progress: called with a description of each measurement before it begins.

    Returns:
        The setting with the highest throughput (for one caller the lowest median latency, at a rate
        the lowest mean latency). Of those within 3 % of it (at a rate 5 %), or within the
        uncertainty of the figures (up to 10 %), the simplest: first single_stream on no more cores
        than help, then elastic, single_stream, multi_stream. Only measurements of one state of the
        machine are compared: on virtual machines whose CPUs move, that of the commonest state; the
        answers of the others are in `states`.

    Raises:
        OptionError: both callers and rate are given, a value is out of range, or seconds is too
            short for a low rate, or for the 300 requests of a p99.
        The exceptions of Engine.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> advise(bundled_model("squeezenet"), callers=1, seconds=1.0).load
        '1 caller'
    """
    batch_size = check_batch_size(batch_size)
    input_shapes = check_shapes(input_shapes)
    custom_ops = check_custom_ops(custom_ops)
    check_rewrites(rewrites)
    batching = check_batching(batching)
    callers = check_optional_integer("callers", callers, 1)
    _check(callers, rate, p99_limit_ms, seconds)
    on_progress = on_progress or (lambda text: None)
    is_default_load = callers is None and rate is None
    compares_batches = (
        compares_batches and is_default_load and bool(batch_size) and input_shapes is None
    )
    most = most_cores(Topology.detect(), num_cores)
    num_cores = None if num_cores is None else most
    load = Load(2 * most if is_default_load else callers, rate)
    question = [
        *(batch_size, input_shapes, num_cores, str(load), p99_limit_ms),
        *(rewrites, batching),
    ]
    answers = (
        AnswerCache.open(model, batch_size, custom_ops, cache_dir, question) if remembers else None
    )
    if answers is not None and (known := answers.get(seconds, compares_batches)) is not None:
        return known

    with _compiled_once(model, cache_dir) as compiled_in:
        advice = _measure_settings(
            model,
            batch_size,
            input_shapes,
            num_cores,
            load,
            p99_limit_ms,
            seconds,
            compares_batches,
            compiled_in,
            custom_ops,
            rewrites,
            batching,
            on_progress,
        )
    is_told = advice.enough_seconds is None and not advice.differs_by_state
    if answers is not None and is_told:
        answers.put(advice, seconds)
    return advice


def _measure_settings(
    model: ModelLike,
    batch_size: BatchSize,
    input_shapes: Shapes | None,
    num_cores: int | None,
    load: Load,
    p99_limit_ms: float | None,
    seconds: float,
    compares_batches: bool,
    cache_dir: CacheDir,
    custom_ops: tuple[str, ...],
    rewrites: str,
    batching: BatchingOption,
    on_progress: _OnProgress,
) -> Advice:
    """See `advise`, which has checked the arguments."""
    began = time.monotonic()
    most = most_cores(Topology.detect(), num_cores)

    def open_batched(batch_size: BatchSize, setting: Setting) -> Engine:
        return Engine(
            model,
            batch_size,
            setting.num_cores,
            setting.num_streams,
            setting.scheduler,
            input_shapes,
            cache_dir=cache_dir,
            custom_ops=custom_ops,
            rewrites=rewrites,
            batching=batching,
        )

    openings: list[float] = []

    def open_engine(setting: Setting) -> Engine:
        before = time.monotonic()
        engine = open_batched(batch_size, setting)
        openings.append(time.monotonic() - before)
        return engine

    cpus = _cpus(most)
    contention = ContentionMonitor(cpus)
    scaling = _scaling(open_engine, most, seconds / 4, on_progress, contention.sample)
    shares = [contention.others_share()]
    rate = load.rate
    load = _measurable(load, scaling, seconds, p99_limit_ms)
    candidates = _candidates(scaling, most, num_cores, load)
    planned = plan(
        candidates,
        scaling,
        most,
        load,
        p99_limit_ms,
        seconds,
        spent=time.monotonic() - began,
        opening=statistics.median(openings),
    )
    _announce(planned, p99_limit_ms, seconds, on_progress)
    if planned.enough_seconds is not None:
        candidates = candidates[:1]  # the default: a comparison would not tell
    results = _compare(candidates, open_engine, load, planned, on_progress)
    shares.append(_worst_share(results, "others_share"))
    of_states = split(results)
    compared = comparable(results)
    figures = [_figures(setting, load, compared[setting]) for setting in candidates]
    default = figures[0]
    fewest = min(it.num_requests for it in figures)
    enough_seconds = planned.enough_seconds
    if fewest < planned.needed and enough_seconds is None:
        took = max(seconds, time.monotonic() - began)
        enough_seconds = math.ceil(2 * took * planned.needed / fewest)
    tied: list[Figures]
    states: list[StateAnswer] = []
    if enough_seconds is not None:
        chosen, tied = default, []
        reason = explain_too_few(planned.needed, scaling, load, enough_seconds)
    else:
        chosen, tied = choose(figures, load, p99_limit_ms)
        reason = explain(chosen, tied, scaling, load, p99_limit_ms)
        for state, of_state in of_states.items():
            in_state = [_figures(setting, load, of_state[setting]) for setting in candidates]
            best = choose(in_state, load, p99_limit_ms)[0].setting
            states.append(StateAnswer(state, best, count(of_state)))
    batches: tuple[BatchFigures, ...] = ()
    if compares_batches and batch_size and enough_seconds is None:
        contention = ContentionMonitor(cpus)
        left = began + MAX_EXTENSION * seconds - time.monotonic()
        batches = _batches(
            chosen,
            results[chosen.setting][1][0].batch_size,
            open_batched,
            load,
            p99_limit_ms,
            0.05 * seconds,
            left,
            on_progress,
        )
        shares.append(contention.others_share())
    replicas: tuple[Replicas, ...] = ()
    if rate is not None and p99_limit_ms is not None:
        on_progress("requests on every core at once")
        contention = ContentionMonitor(cpus)
        busy_ms = _busy_ms(open_engine, most, seconds / 8)
        shares.append(contention.others_share())
        on_progress("replicas")
        replicas = plan_replicas(scaling, busy_ms, most, rate, p99_limit_ms)
    return Advice(
        setting=chosen.setting,
        batch_size=batch_size,
        input_shapes=input_shapes,
        custom_ops=custom_ops,
        rewrites=rewrites,
        batching=batching,
        reason=reason,
        cost_of_ignoring=compare_default(chosen, tied, default, load),
        figures=tuple(sorted(figures, key=lambda it: (not it.keeps_up, load.cost(it)))),
        batches=batches,
        scaling_ms=scaling,
        load=str(load),
        seconds=time.monotonic() - began,
        others_share=_worst_known(shares),
        steal_share=_worst_share(results, "steal_share"),
        enough_seconds=enough_seconds,
        states=tuple(states),
        num_incomparable=count(results) - sum(count(it) for it in of_states.values()),
        replicas=replicas,
    )


@contextlib.contextmanager
def _compiled_once(model: ModelLike, cache_dir: CacheDir) -> Iterator[CacheDir]:
    """Where engines of the model are to look for its compiled form until the block's end: one that
    each of them would make anew in memory is kept there meanwhile."""
    with contextlib.ExitStack() as stack:
        if keeps_in_memory(model, cache_dir):
            with contextlib.suppress(OSError):
                folder = stack.enter_context(temporary_folder(in_memory=True))
                cache_dir = str(folder.path)
        yield cache_dir


def _check(
    callers: int | None, rate: float | None, p99_limit_ms: float | None, seconds: float
) -> None:
    if callers is not None and rate is not None:
        raise OptionError("give callers (a closed loop) or rate (requests a second), not both")
    for name, value in (("rate", rate), ("p99_limit_ms", p99_limit_ms), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(f"{name} must be a positive number, got {value!r}")


def _announce(
    planned: Plan, p99_limit_ms: float | None, seconds: float, on_progress: _OnProgress
) -> None:
    """Says before what takes longer than it should, or does not tell.

    Raises:
        OptionError: there is no time for a p99.
    """
    if planned.enough_seconds is not None:
        if p99_limit_ms is not None:
            raise OptionError(
                f"a p99 takes {planned.needed} requests of each setting, which this model does not "
                f"answer in {seconds:g} seconds; give seconds={planned.enough_seconds} or more (on "
                f"the command line --seconds {planned.enough_seconds})"
            )
        text = (
            f"advise has too little time for {planned.needed} requests of each setting of this "
            f"model; {planned.enough_seconds} s would do"
        )
    elif planned.is_extended:
        text = (
            f"advise measures for about {planned.total_seconds:.0f} s, since it takes "
            f"{planned.needed} requests of each setting of this model to tell them apart"
        )
    else:
        return
    on_progress(text)
    logger.warning("%s", text)


def _scaling(
    open_engine: _OpenEngine,
    most: int,
    seconds: float,
    on_progress: _OnProgress,
    sample: Callable[[], None],
) -> dict[int, float]:
    """By cores: median latency of a lone request in ms, up to where more cores do not help.
    `sample`: of a ContentionMonitor, called before threads end."""
    each = seconds / 2 / len(widths(most))
    scaling: dict[int, float] = {}
    for cores in widths(most):
        on_progress(f"a lone request on {cores} core{'s' * (cores > 1)}")
        scaling[cores] = _lone_ms(open_engine, cores, each, sample, warns=cores == 1)
        narrower = [value for width, value in scaling.items() if width < cores]
        if narrower and scaling[cores] > 1.1 * min(narrower):
            break  # slower than on fewer cores: more cores make it slower still
    # Measured twice, at some distance in time: disturbances only ever add to a latency.
    return {
        cores: min(ms, _lone_ms(open_engine, cores, each, sample)) for cores, ms in scaling.items()
    }


def _lone_ms(
    open_engine: _OpenEngine,
    cores: int,
    seconds: float,
    sample: Callable[[], None],
    warns: bool = False,
) -> float:
    with open_engine(Setting("single_stream", None, cores)) as engine:
        inputs = _tried_inputs(engine, warns)
        sample()
        times: list[float] = []
        begin = time.perf_counter()
        elapsed = 0.0
        while (
            not times
            or elapsed < seconds
            or (len(times) < _MIN_RUNS and elapsed < _MAX_OVERTIME * seconds)
        ):
            engine.run(inputs)
            before, elapsed = elapsed, time.perf_counter() - begin
            times.append(1e3 * (elapsed - before))
        sample()
    return statistics.median(times)


def _busy_ms(open_engine: _OpenEngine, most: int, seconds: float) -> list[float]:
    """Lengths of runs in ms, on one core each while all others are busy."""
    with open_engine(Setting("multi_stream", most, most)) as engine:
        measured = _apply_load(engine, Load(most, None), seconds, 0.1 * seconds)
    return [float(ms) for ms in measured.latencies_ms]


def _tried_inputs(engine: Engine, warns: bool = False) -> list[Any]:
    infos = engine._served.model.inputs
    return tried_inputs(infos, engine.batch_size, engine.run, warns)


def _measurable(
    load: Load, scaling: dict[int, float], seconds: float, p99_limit_ms: float | None
) -> Load:
    """The load if enough requests arrive in the time; else one caller, if requests rarely overlap.

    Raises:
        OptionError: requests do overlap, and there is too little time to measure them.
    """
    needed = _MIN_ARRIVALS if p99_limit_ms is None else requests_for(99)
    each = COMPARISON_SHARE * seconds / _MAX_SETTINGS
    if load.rate is None or load.rate * each >= needed:
        return load
    if load.rate * max(scaling.values()) / 1e3 < _RARE_OVERLAP:
        return Load(1, None, load.rate)
    if load.rate * each * MAX_EXTENSION >= needed:
        return load
    enough = math.ceil(seconds * needed / (load.rate * each))
    raise OptionError(
        f"at {load.rate:g} requests/s, too few arrive in {seconds:g} seconds to compare settings; "
        f"give seconds={enough} or more (on the command line --seconds {enough})"
    )


def _candidates(
    scaling: dict[int, float], most: int, num_cores: int | None, load: Load
) -> list[Setting]:
    """The settings to measure: the default first, elastic, single_stream on fewer cores, and the
    three multi_streams with the highest throughput predicted from the scaling."""
    candidates = [Setting("single_stream", None, num_cores)]
    if most == 1:
        return candidates  # on one core all settings are the same
    candidates.append(Setting("elastic", None, num_cores))
    enough = useful_cores(scaling)
    if enough < most:
        candidates.append(Setting("single_stream", None, enough))

    def predicted(streams: int) -> float:
        return throughput(Setting("multi_stream", streams, num_cores), scaling, most, load)

    counts = {most // cores for cores in scaling} | set(widths(most))
    if load.callers is not None:
        counts.add(min(load.callers, most))
    best_first = sorted(counts - {1}, key=lambda streams: (-predicted(streams), streams))
    if load.callers != 1:
        candidates += [Setting("multi_stream", streams, num_cores) for streams in best_first[:3]]
    return candidates


"""By setting: its number of streams, and its rounds."""


def _compare(
    candidates: Sequence[Setting],
    open_engine: _OpenEngine,
    load: Load,
    planned: Plan,
    on_progress: _OnProgress,
) -> Results:
    """Measures each setting under the load, in turns so that a disturbance affects all of them."""
    results: Results = {setting: (0, []) for setting in candidates}
    for number in range(planned.max_rounds):
        if number >= planned.rounds and planned.needed <= min(
            sum(it.num_arrived for it in measured) for _, measured in comparable(results).values()
        ):
            break
        for setting in candidates:
            rounds = max(planned.rounds, number + 1)
            on_progress(f"{setting}, {load} ({number + 1} of {rounds})")
            with open_engine(setting) as engine:
                measured = results[setting][1]
                measured.append(
                    _apply_load(engine, load, planned.seconds, planned.warmup_seconds, seed=number)
                )
                results[setting] = engine.num_streams, measured
    return results


def _figures(setting: Setting, load: Load, result: tuple[int, list[Measurement]]) -> Figures:
    """Medians over the rounds, and percentiles over the requests of all of them."""
    num_streams, measured = result
    latencies_ms = np.concatenate([it.latencies_ms for it in measured])
    num_dropped = sum(it.num_dropped for it in measured)
    num_requests = len(latencies_ms) + num_dropped

    def over_rounds(values: Callable[[Measurement], float]) -> float:
        return statistics.median(values(it) for it in measured)

    if load.rate is not None:
        compared = [float(np.mean(it.latencies_ms)) for it in measured]
    elif load.callers == 1:
        compared = [it.percentile(50) for it in measured]
    else:
        compared = [it.items_per_sec for it in measured]
    return Figures(
        setting,
        num_streams,
        items_per_sec=over_rounds(lambda it: it.items_per_sec),
        mean_ms=over_rounds(lambda it: float(np.mean(it.latencies_ms))),
        p50_ms=latency_percentile(latencies_ms, num_dropped, 50),
        p99_ms=latency_percentile(latencies_ms, num_dropped, 99),
        answered=over_rounds(lambda it: it.iterations / it.num_arrived),
        keeps_up=over_rounds(lambda it: it.keeps_up) > 0.5,
        num_requests=num_requests,
        # Streams that run in step answer in bursts, and a window may begin or end within one.
        margin=max(2 * _standard_error(compared), num_streams / num_requests),
    )


def _standard_error(values: Sequence[float]) -> float:
    """Of their mean, relative to it."""
    return statistics.stdev(values) / math.sqrt(len(values)) / statistics.mean(values)


def _cpus(num_cores: int) -> set[int]:
    """Those of the cores that settings are measured on."""
    streams = partition(Topology.detect(), num_cores, 1).streams
    return {cpu for stream in streams for core in stream.cores for cpu in core.cpus}


def _worst_known(shares: Sequence[float | None]) -> float | None:
    """None if any is unknown."""
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) else None


def _worst_share(results: Results, name: str) -> float | None:
    """A share of `Usage`: of the setting that it hit worst, the median of its rounds; None if it is
    unknown in any. A figure is a median of rounds too: one disturbed round does not move it, two of
    three do, however quiet the other settings' rounds were."""
    by_setting = [
        [getattr(it.usage, name) for it in measured if it.usage] for _, measured in results.values()
    ]
    shares = [shares for shares in by_setting if shares]
    if not shares or any(None in of_setting for of_setting in shares):
        return None
    return float(max(statistics.median(of_setting) for of_setting in shares))


def _apply_load(
    engine: Engine, load: Load, seconds: float, warmup_seconds: float, seed: int = 0
) -> Measurement:
    """Puts the load on an engine. `seed`: of the arrivals, the same for all settings."""
    measured = measure(
        engine,
        callers=load.callers,
        rate=load.rate,
        poisson=load.rate is not None,
        seed=seed,
        seconds=seconds,
        warmup_seconds=warmup_seconds,
        # Requests this late show that the rate is too high; no need to wait for them.
        max_late_seconds=0.3 * seconds,
    )
    if measured.is_interrupted:  # by Ctrl-C: no advice from a part of the figures
        raise KeyboardInterrupt
    return measured


def _batches(
    chosen: Figures,
    batch_size: int,
    open_batched: Callable[[int, Setting], Engine],
    load: Load,
    p99_limit_ms: float | None,
    seconds: float,
    seconds_left: float,
    on_progress: _OnProgress,
) -> tuple[BatchFigures, ...]:
    """Larger batches with the chosen setting, while throughput grows, p99 is in the limit, and
    enough requests fit the seconds left."""
    found = [
        BatchFigures(batch_size, chosen.items_per_sec, chosen.p50_ms, chosen.num_requests),
    ]
    needed = _MIN_BATCHES if p99_limit_ms is None else requests_for(99)
    began = time.monotonic()
    for _ in range(_BATCH_STEPS):
        batch_size *= _BATCH_STEP
        # At the throughput of the last size: larger batches gain something, but not much.
        request_seconds = batch_size / found[-1].items_per_sec
        latency = request_seconds * (load.callers or 1)
        each = max(_MIN_SECONDS, seconds, needed * request_seconds)
        if latency + each > seconds_left - (time.monotonic() - began):
            break
        on_progress(f"{chosen.setting}, batches of {batch_size}")
        try:
            # A trial without elastic first, which would log that it cannot measure the model.
            with open_batched(batch_size, Setting("single_stream", None, 1)) as engine:
                _tried_inputs(engine)
            with open_batched(batch_size, chosen.setting) as engine:
                measured = _apply_load(engine, load, each, max(0.1 * each, latency))
        except (ModelError, InputError, InferenceError):
            break  # the model has fixed shapes, or depends on the batch size elsewhere
        if p99_limit_ms is not None and measured.percentile(99) > p99_limit_ms:
            break
        found.append(
            BatchFigures(
                batch_size,
                measured.items_per_sec,
                measured.percentile(50),
                measured.num_arrived,
            )
        )
        if found[-1].items_per_sec < _BATCH_GAIN * found[-2].items_per_sec:
            break
    return tuple(found)
