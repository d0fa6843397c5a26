"""measure: puts one load on one engine; Measurement: the result."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from deepsched.benchmark.load import (
    Clock,
    MonotonicClock,
    RequestTimes,
    Run,
    closed_loop,
    open_loop,
)
from deepsched.benchmark.percentiles import latency_percentile
from deepsched.benchmark.usage import Usage, UsageSnapshot, reset_peak_memory
from deepsched.checks import check_integer, check_optional_integer
from deepsched.engine import Engine
from deepsched.errors import OptionError
from deepsched.machine.state import Conditions, StateWatch
from deepsched.scheduling.stats import Counts, Latency, Stats

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)

# An engine keeps up with a rate if it drops no more than this share of the requests, and latency
# grows by no more than this share of the time that passes.
_MAX_DROPPED = 0.01
_MAX_GROWTH = 0.03

_MAX_RATE = 1e8  # above it, just counting the arrivals takes longer than the load lasts

Milliseconds = np.ndarray[Any, np.dtype[np.float64]]


@runtime_checkable
class Measurable(Protocol):
    """An engine that `measure` takes: deepsched's, or one of `open_engine`.

    `batch_size` and `num_streams` are optional, and 1 where they are missing.
    """

    def run(self, inputs: Any) -> Any:
        """Answers a request; called from several threads at once."""

    def generate_random_inputs(self) -> Any:
        """Inputs for `run`."""


class LoadOptions(TypedDict, total=False):
    """The options of `measure` that define the load; `sweep` takes them as well."""

    callers: int | None
    rate: float | None
    poisson: bool
    seed: int
    seconds: float
    warmup_seconds: float
    max_late_seconds: float | None
    clock: Clock


@dataclass(frozen=True)
class Measurement:
    """Throughput, latencies and resource usage of an engine under one load.

    Latency is that of a whole call, time in the queue included. In an open loop it counts from the
    request's arrival time.
    """

    callers: int
    """Number of calling threads: the concurrency of a closed loop, its limit in an open loop."""
    batch_size: int
    """Items in a request."""
    seconds: float
    """Length of the measurement, without the warm-up."""
    latencies_ms: Milliseconds
    """Latency of each request in ms; an open loop's in order of arrival."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended it early."""
    rate: float | None = None
    """The arrival rate (offered load), in requests per second; None for a closed loop."""
    poisson: bool = False
    """Whether arrivals were a Poisson process; False: evenly spaced."""
    num_dropped: int = 0
    """Requests that were not sent since no caller was free within `max_late_seconds`."""
    send_delays_ms: Milliseconds = field(default_factory=lambda: np.zeros(0))
    """The part of each latency in ms before the request was sent, in the same order; empty for a
    closed loop."""
    usage: Usage | None = None
    """Resource usage of the process during the measurement."""
    stats: Stats | None = None
    """The engine's own statistics over the measurement; None for other engines."""
    cpu_seconds_per_item: float | None = None
    """CPU time of the process, the callers' included; None if no request ended."""
    conditions: Conditions | None = None
    """What was seen of the machine before and after the load, for `machine.state.states_of`; None
    under a simulated clock."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        return all(  # arrays as a whole
            np.array_equal(getattr(self, one.name), getattr(other, one.name))
            for one in fields(self)
        )

    @property
    def iterations(self) -> int:
        """Number of requests that were answered during the measurement."""
        return len(self.latencies_ms)

    @property
    def num_arrived(self) -> int:
        """Number of requests behind a percentile: the answered and the dropped ones."""
        return self.iterations + self.num_dropped

    @property
    def items_per_sec(self) -> float:
        """Throughput: requests per second times batch size."""
        return self.iterations * self.batch_size / self.seconds

    @property
    def keeps_up(self) -> bool:
        """Whether throughput keeps up with the arrival rate; True for a closed loop.

        Percentiles do not tell: under overload latency grows with every request, and a high limit
        or a short load may end before it exceeds any. An engine keeps up with an open loop if:

        - No more than 1 % of the requests were dropped.
        - The backlog does not grow. At `x` times the engine's capacity, latency grows by `x - 1`
          seconds per second for as long as the load lasts; below capacity it rises at times and
          falls again. The backlog grows if the median latency rises from each quarter of the
          requests, in order of arrival, to the next, by more than 3 % of the elapsed time in all.
          Medians of quarters that must all agree, since a stall or a burst of arrivals affects a
          part of the load only. The last must also be twice the first: with few requests, noise
          alone may be 3 % of the time.
        - At least half of the requests took less time than the load lasted; otherwise it was too
          short to show anything.

        Rates within a few percent of the capacity need long loads: 1000 Poisson arrivals may well
        come 3 % faster than the given rate.
        """
        if self.rate is None:
            return True
        if self.num_dropped > _MAX_DROPPED * self.num_arrived:
            return False
        milliseconds = 1e3 * self.num_arrived / self.rate
        return self.percentile(50) < milliseconds and not _grows(self.latencies_ms, milliseconds)

    def percentile(self, percent: float) -> float:
        """A percentile of the latency, in ms; `percent` from 0 to 100.

        Dropped requests count as infinitely late. A p99 takes some 300 requests (`num_arrived`): of
        fewer than 100 it is about the highest latency.
        """
        return latency_percentile(self.latencies_ms, self.num_dropped, percent)

    def to_dict(self) -> dict[str, Any]:
        """DeepSparse's keys and ours; `deepsched.benchmark.FIELDS` defines each."""
        usage, stats = self.usage, self.stats
        delays = self.send_delays_ms
        return {
            "callers": self.callers,
            "items_per_sec": self.items_per_sec,
            "seconds_ran": self.seconds,
            "iterations": self.iterations,
            "median": _finite(self.percentile(50)),
            "mean": float(np.mean(self.latencies_ms)),
            "std": float(np.std(self.latencies_ms)),
            **{f"{percent}%": _finite(self.percentile(percent)) for percent in PERCENTILES},
            "max": float(np.max(self.latencies_ms)),
            "rate": self.rate,
            "poisson": self.poisson,
            "dropped": self.num_dropped,
            "keeps_up": self.keeps_up,
            "send_delay_ms": _percentiles(delays) if len(delays) else None,
            "waiting_ms": _latency(stats.waiting) if stats else None,
            "running_ms": _latency(stats.running) if stats else None,
            "streams": [_stream(stream) for stream in stats.streams] if stats else None,
            "cpu_seconds_per_item": self.cpu_seconds_per_item,
            "peak_memory_bytes": usage.peak_memory_bytes if usage else None,
            "throttled_seconds": usage.throttled_seconds if usage else None,
            "others_share": usage.others_share if usage else None,
            "steal_share": usage.steal_share if usage else None,
            "core_trips_before_ns": _rounded(self.conditions.before_ns if self.conditions else ()),
            "core_trips_after_ns": _rounded(self.conditions.after_ns if self.conditions else ()),
        }


def _rounded(trips_ns: Sequence[float]) -> list[int | None]:
    return [None if math.isnan(trip) else round(trip) for trip in trips_ns]


def _finite(value: float) -> float | None:
    return value if value < math.inf else None


def _grows(latencies_ms: Milliseconds, milliseconds: float) -> bool:
    """Whether latency grows over a load of this length; see `Measurement.keeps_up`."""
    if len(latencies_ms) < 4:
        return False
    quarters = [float(np.median(part)) for part in np.array_split(latencies_ms, 4)]
    return (
        all(before < after for before, after in itertools.pairwise(quarters))
        and quarters[-1] > 2 * quarters[0]
        and quarters[-1] - quarters[0] > _MAX_GROWTH * 0.75 * milliseconds  # middle to middle
    )


def _percentiles(values: Milliseconds) -> dict[str, float]:
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        **{f"{percent}%": float(np.percentile(values, percent)) for percent in (50.0, 90.0, 99.0)},
        "max": float(np.max(values)),
    }


def _latency(latency: Latency) -> dict[str, float]:
    return {
        "count": latency.count,
        "mean": latency.mean * 1e3,
        "50.0%": latency.p50 * 1e3,
        "90.0%": latency.p90 * 1e3,
        "99.0%": latency.p99 * 1e3,
        "99.9%": latency.p999 * 1e3,
        "max": latency.max * 1e3,
    }


def _stream(stream: Any) -> dict[str, Any]:
    return {
        "index": stream.index,
        "requests": stream.done,
        "inline": stream.inline,
        "by_worker": stream.by_worker,
        "busy_fraction": stream.busy_fraction,
    }


def measure(
    target: Run | Measurable,
    inputs: Any = None,
    *,
    callers: int | None = None,
    rate: float | None = None,
    poisson: bool = False,
    seed: int = 0,
    seconds: float = 10.0,
    warmup_seconds: float = 2.0,
    max_late_seconds: float | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[float], None] | None = None,
    clock: Clock | None = None,
) -> Measurement:
    """Puts a load on an engine for `seconds`, after a warm-up.

    Resets the process's peak memory (VmHWM, ru_maxrss of `resource.getrusage`) to measure that of
    the load: a host program that reads it sees the peak since the last `measure`.

    Args:
        target: an Engine, an engine of `open_engine`, or a function that answers a request.
        inputs: the inputs of every request; None for random ones (a function needs them given).
        callers: number of calling threads. Closed loop: each sends its next request when the last
            one is answered; None for one per stream. Open loop: the limit of requests in flight;
            None for four per stream, and at least 16.
        rate: arrival rate of an open loop, in requests per second: requests arrive evenly spaced,
            however long the answers take, and latency counts from the arrival. None for a closed
            loop.
        poisson: arrivals are a Poisson process instead, as from many independent users.
        seed: of the Poisson process; the same seed gives the same arrival times.
        seconds: how long requests arrive (open loop) or are sent (closed loop).
        warmup_seconds: the same load before that, not measured.
        max_late_seconds: a request that no caller could send within this time of its arrival is
            dropped and counted; None for `seconds`. It bounds the duration under overload to
            `seconds` + `max_late_seconds` and the last answers.
        batch_size: items in a request; None for the engine's.
        on_progress: called about ten times a second with the elapsed seconds, warm-up included.
        clock: the clock of the load, for tests; None for the system's monotonic clock.

    Returns:
        The measurement. After Ctrl-C it covers the time until then.

    Raises:
        OptionError: an option has a value that is not allowed.
        KeyboardInterrupt: Ctrl-C before anything was measured.
        The first exception that `run` raised.

    Example:
        >>> result = measure(sum, [1, 2], callers=2, seconds=0.05, warmup_seconds=0.0)
        >>> result.iterations > 0
        True
        >>> measure(sum, [1, 2], rate=200, seconds=0.05, warmup_seconds=0.0).iterations
        10
    """
    batch_size = check_optional_integer("batch_size", batch_size, 1)
    callers = check_optional_integer("callers", callers, 1)
    seed = check_integer("seed", seed, 0)
    run, inputs, batch_size = _resolve(target, inputs, batch_size)
    num_streams = getattr(target, "num_streams", None) or 1
    if callers is None:
        callers = num_streams if rate is None else max(16, 4 * num_streams)
    late = seconds if max_late_seconds is None else max_late_seconds
    _check(rate, poisson, seconds, warmup_seconds, late)
    watch: StateWatch | None = None
    if clock is None:  # another clock is a simulation's, which says nothing of this machine
        clock, watch = MonotonicClock(), StateWatch(_first_cpus(target))
    meter = _Meter(target, clock)
    progress = _Progress(on_progress, seconds, warmup_seconds)
    if rate is None:
        closed = functools.partial(closed_loop, run, inputs, callers=callers, clock=clock)
        times = _closed(closed, seconds, warmup_seconds, meter, progress)
    else:
        opened = functools.partial(
            open_loop,
            run,
            inputs,
            rate=rate,
            seed=seed,
            callers=callers,
            max_late_seconds=late,
            clock=clock,
        )
        times = _open(opened, seconds, warmup_seconds, poisson, meter, progress)
    usage, stats, num_ended = meter.end(times)
    return Measurement(
        callers=callers,
        batch_size=batch_size,
        seconds=(times.end - times.begin) / 1e9,
        latencies_ms=(times.ended - times.arrived) / 1e6,
        is_interrupted=times.is_interrupted,
        rate=rate,
        poisson=poisson,
        num_dropped=times.num_dropped,
        send_delays_ms=np.zeros(0) if rate is None else (times.sent - times.arrived) / 1e6,
        usage=usage,
        stats=stats,
        cpu_seconds_per_item=(usage.cpu_seconds / (num_ended * batch_size) if num_ended else None),
        conditions=watch.end(usage.others_share) if watch else None,
    )


def _closed(
    loop: Callable[..., RequestTimes],
    seconds: float,
    warmup_seconds: float,
    meter: _Meter,
    progress: _Progress,
) -> RequestTimes:
    """One load, the warm-up its first part: the measurement begins with all callers busy."""

    def on_tick(now_ns: int) -> None:
        progress.load(now_ns)
        if 0 <= now_ns < seconds * 1e9:
            meter.begin()
        meter.sample()

    if warmup_seconds == 0:
        meter.begin()
    return loop(seconds=seconds, warmup_seconds=warmup_seconds, on_tick=on_tick)


def _open(
    loop: Callable[..., RequestTimes],
    seconds: float,
    warmup_seconds: float,
    poisson: bool,
    meter: _Meter,
    progress: _Progress,
) -> RequestTimes:
    """Two loads, so that the backlog of the warm-up does not count."""
    if warmup_seconds > 0:
        # Evenly spaced, so that at least one request arrives.
        times = loop(seconds=warmup_seconds, poisson=False, on_tick=progress.warmup)
        if times.is_interrupted:
            raise KeyboardInterrupt
    meter.begin()

    def on_tick(now_ns: int) -> None:
        progress.load(now_ns)
        meter.sample()

    return loop(seconds=seconds, poisson=poisson, on_tick=on_tick)


def _resolve(target: Run | Measurable, inputs: Any, batch_size: int | None) -> tuple[Run, Any, int]:
    if isinstance(target, Measurable):
        if inputs is None:
            inputs = target.generate_random_inputs()
        return target.run, inputs, batch_size or getattr(target, "batch_size", None) or 1
    if not callable(target):
        raise OptionError(
            "expected an engine (with run and generate_random_inputs) or a function to measure, "
            f"got {type(target).__name__}"
        )
    return target, inputs, batch_size or 1


def _check(
    rate: float | None,
    poisson: bool,
    seconds: float,
    warmup_seconds: float,
    max_late_seconds: float,
) -> None:
    for name, value in (("seconds", seconds), ("rate", 1 if rate is None else rate)):
        if not 0 < value < math.inf:
            raise OptionError(f"{name} must be positive, got {value!r}")
    if rate is not None and rate > _MAX_RATE:
        raise OptionError(f"rate must be at most {_MAX_RATE:g} requests a second, got {rate!r}")
    for name, value in (("warmup_seconds", warmup_seconds), ("max_late_seconds", max_late_seconds)):
        if not 0 <= value < math.inf:
            raise OptionError(f"{name} must be 0 or more, got {value!r}")
    if poisson and rate is None:
        raise OptionError(
            "poisson needs a rate: random arrivals are for an open loop; give both or neither"
        )


class _Progress:
    """Converts times of a loop, which begin at 0, to seconds since the start of the warm-up."""

    def __init__(
        self, report: Callable[[float], None] | None, seconds: float, warmup_seconds: float
    ) -> None:
        self._report = report
        self._seconds = seconds
        self._warmup_seconds = warmup_seconds

    def warmup(self, now_ns: int) -> None:
        if self._report is not None:
            self._report(min(max(0.0, now_ns / 1e9), self._warmup_seconds))

    def load(self, now_ns: int) -> None:
        if self._report is not None:
            self._report(self._warmup_seconds + min(now_ns / 1e9, self._seconds))


class _Meter:
    """Reads the counters of process and engine at the begin and the end of the measurement."""

    def __init__(self, target: Any, clock: Clock) -> None:
        reset_peak_memory()
        self._engine = target if isinstance(target, Engine) else None
        self._clock = clock
        self._cpus = None if self._engine is None else _cpus_in_use(self._engine)
        self._has_begun = False
        # A load may end before the next tick sees that its warm-up is over.
        self._first = self._read()

    def begin(self) -> None:
        """The measurement begins now; only the first call counts."""
        if not self._has_begun:
            self._has_begun = True
            self._first = self._read()

    def sample(self) -> None:
        """Notes where threads run; see ContentionMonitor."""
        self._first[0].contention.sample()

    def end(self, times: RequestTimes) -> tuple[Usage, Stats | None, int]:
        """Usage and statistics since `begin`, and the number of requests that ended since then."""
        (first, counts_before), (last, counts) = self._first, self._read()
        ended = times.all_ended
        num_ended = int(((ended > first.at_ns) & (ended <= last.at_ns)).sum())
        usage = first.until(last)
        if self._engine is None or counts is None or counts_before is None:
            return usage, None, num_ended
        now = self._engine.stats()
        stats = counts.since(counts_before).summary(
            usage.seconds, now.queue_depth, now.queue_depth_max, now.queue_capacity
        )
        return usage, stats, num_ended

    def _read(self) -> tuple[UsageSnapshot, Counts | None]:
        counts = None if self._engine is None else self._engine._served.counts()
        return UsageSnapshot.take(self._clock.now_ns(), self._cpus), counts


def _first_cpus(target: Any) -> list[int] | None:
    """One hardware thread of each core that an engine is pinned to; None: of all cores."""
    if not isinstance(target, Engine) or target.context.pin == "none":
        return None
    return [core.cpus[0] for stream in target.streams for core in stream.cores]


def _cpus_in_use(engine: Engine) -> set[int] | None:
    """All hardware threads of the engine's cores: work on a sibling slows a core as well."""
    if engine.context.pin == "none":
        return None
    return {cpu for stream in engine.streams for core in stream.cores for cpu in core.cpus}
