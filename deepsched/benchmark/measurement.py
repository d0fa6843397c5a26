"""measure: one load on one engine, and what it measured."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from deepsched.benchmark.load import Clock, MonotonicClock, Run, Spans, closed_loop, open_loop
from deepsched.benchmark.usage import Reading, Usage, reset_peak_memory
from deepsched.engine import Engine
from deepsched.errors import OptionError
from deepsched.integers import check_integer, check_optional_integer
from deepsched.scheduling.stats import Counts, Latency, Stats

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)

# What an engine that keeps up may drop, and may fall behind, by the time that passes.
_MOST_DROPPED = 0.01
_MOST_GROWTH = 0.03

_HIGHEST_RATE = 1e8  # above it, just counting what falls due takes longer than it may

Milliseconds = np.ndarray[Any, np.dtype[np.float64]]


@runtime_checkable
class Measurable(Protocol):
    """What can be measured beside a plain function: deepsched's engines and `open_engine`'s.

    It may have `batch_size` (1 if not) and `num_streams` (1 if not) as well.
    """

    def run(self, inputs: Any) -> Any:
        """Answers a request; called from several threads at once."""

    def generate_random_inputs(self) -> Any:
        """What `run` takes."""


class LoadOptions(TypedDict, total=False):
    """The options of `measure` that say what the load is; `sweep` and `search_rate` take them."""

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
    """What a load measured.

    Latencies are of whole calls, waiting included. In an open loop they count from the time that
    the request was due.
    """

    callers: int
    """How many threads called: in a closed loop all of them at once, in an open loop at most."""
    batch_size: int
    """Items in a request."""
    seconds: float
    """The time measured, warm-up left out."""
    latencies_ms: Milliseconds
    """Of each request, in milliseconds; of an open loop in the order in which they fell due."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended it early."""
    rate: float | None = None
    """Requests a second that were due; None for a closed loop."""
    poisson: bool = False
    """Whether their times were random, or evenly spaced."""
    num_dropped: int = 0
    """Requests that were due so long before a caller was free that they were not sent."""
    send_delays_ms: Milliseconds = field(default_factory=lambda: np.zeros(0))
    """Of each request, the part of its latency before it was sent, in the same order; empty for a
    closed loop."""
    usage: Usage | None = None
    """What the process used meanwhile."""
    stats: Stats | None = None
    """What the engine counted meanwhile; None for engines that do not count."""
    cpu_seconds_per_item: float | None = None
    """CPU time of the process, the callers' included; None if no request was answered whole."""

    @property
    def iterations(self) -> int:
        """How many requests were answered in that time."""
        return len(self.latencies_ms)

    @property
    def items_per_sec(self) -> float:
        """Requests times batch size, a second."""
        return self.iterations * self.batch_size / self.seconds

    @property
    def keeps_up(self) -> bool:
        """Whether the engine answers requests as fast as they fall due; True for a closed loop.

        Percentiles do not tell: an engine that is asked for more than it can do is later with
        every request, which a high limit, or a short load, lets pass. So, in an open loop:

        - No more than 1 % of the requests were dropped.
        - The backlog does not grow. At `x` times what the engine can do, latency grows by `x - 1`
          seconds a second for as long as the load lasts; of an engine that keeps up it may rise
          and falls again. A backlog grows if the median latency of each quarter of the requests,
          in the order in which they fell due, is above that of the quarter before, and all of
          that together is more than 3 % of the time that passed. Medians, of quarters that must
          all agree, since a stall, or a burst of random arrivals, is late for a part of the load
          only. The last must be twice the first as well: of a few requests noise alone may be
          3 % of the time.
        - At least half of the requests took less time than the load lasted, or it was over before
          there was anything to see.

        Rates within a few percent of the highest are told apart only by long loads: of 1000
        requests at random times, one may well fall due 3 % more often than it was asked for.
        """
        if self.rate is None:
            return True
        due = self.iterations + self.num_dropped
        if self.num_dropped > _MOST_DROPPED * due:
            return False
        milliseconds = 1e3 * due / self.rate
        return self.percentile(50) < milliseconds and not _grows(self.latencies_ms, milliseconds)

    def percentile(self, percent: float) -> float:
        """The latency in ms that `percent` of the requests stayed within."""
        return float(np.percentile(self.latencies_ms, percent))

    def to_dict(self) -> dict[str, Any]:
        """DeepSparse's keys and ours; `deepsched.benchmark.FIELDS` defines each."""
        usage, stats = self.usage, self.stats
        delays = self.send_delays_ms
        return {
            "callers": self.callers,
            "items_per_sec": self.items_per_sec,
            "seconds_ran": self.seconds,
            "iterations": self.iterations,
            "median": self.percentile(50),
            "mean": float(np.mean(self.latencies_ms)),
            "std": float(np.std(self.latencies_ms)),
            **{f"{percent}%": self.percentile(percent) for percent in PERCENTILES},
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
        }


def _grows(latencies_ms: Milliseconds, milliseconds: float) -> bool:
    """Whether latency rises from the first to the last of requests that fell due in this time."""
    if len(latencies_ms) < 4:
        return False
    quarters = [float(np.median(part)) for part in np.array_split(latencies_ms, 4)]
    return (
        all(before < after for before, after in itertools.pairwise(quarters))
        and quarters[-1] > 2 * quarters[0]
        and quarters[-1] - quarters[0] > _MOST_GROWTH * 0.75 * milliseconds  # middle to middle
    )


def _percentiles(values: Milliseconds) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        **{f"{percent}%": float(np.percentile(values, percent)) for percent in (50.0, 90.0, 99.0)},
        "max": float(np.max(values)),
    }


def _latency(latency: Latency) -> dict[str, float]:
    return {
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
    """Loads an engine for `seconds`, after a warm-up.

    To tell the most memory that the load had resident, the process's own record of it (VmHWM, what
    `resource.getrusage` calls ru_maxrss) is set back first: a host program that looks at it sees
    the peak since the last `measure`.

    Args:
        target: an Engine, what `open_engine` returns, or a function that answers a request.
        inputs: what each request is; None: random ones, which a function cannot make up.
        callers: threads that call. Closed loop: each sends the next request when its last one is
            answered; None for one for each stream of the engine. Open loop: how many requests may
            be under way at once; None for four for each stream, and 16 at least.
        rate: requests a second, for an open loop: they fall due evenly spaced, however long the
            answers take, and latency counts from then. None for a closed loop.
        poisson: they fall due at random instead, as those of many independent users do.
        seed: of those random times; the same seed, the same times.
        seconds: how long requests fall due, or are sent.
        warmup_seconds: the same load before that, which is not counted.
        max_late_seconds: a request that no caller could send within this time of its being due is
            dropped and counted; None for as long as `seconds`. It bounds the time that an
            overloaded run takes, at `seconds` + `max_late_seconds` and the last answers.
        batch_size: items in a request; None for the engine's.
        on_progress: called about ten times a second with the seconds that have passed, the
            warm-up included.
        clock: what the load goes by, for tests; None for the machine's monotonic clock.

    Raises:
        OptionError: an option has a value that is not allowed.
        Whatever `run` raises, the first of it. KeyboardInterrupt ends the load early, and what
        was measured so far is returned; with nothing measured it goes up.

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
    clock = MonotonicClock() if clock is None else clock
    meter = _Meter(target, clock)
    progress = _Progress(on_progress, seconds, warmup_seconds)
    if rate is None:
        closed = functools.partial(closed_loop, run, inputs, callers=callers, clock=clock)
        spans = _closed(closed, seconds, warmup_seconds, meter, progress)
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
        spans = _open(opened, seconds, warmup_seconds, poisson, meter, progress)
    usage, stats, num_answered = meter.end(spans)
    return Measurement(
        callers=callers,
        batch_size=batch_size,
        seconds=(spans.end - spans.begin) / 1e9,
        latencies_ms=(spans.ended - spans.due) / 1e6,
        is_interrupted=spans.is_interrupted,
        rate=rate,
        poisson=poisson,
        num_dropped=spans.num_dropped,
        send_delays_ms=np.zeros(0) if rate is None else (spans.sent - spans.due) / 1e6,
        usage=usage,
        stats=stats,
        cpu_seconds_per_item=(
            usage.cpu_seconds / (num_answered * batch_size) if num_answered else None
        ),
    )


def _closed(
    loop: Callable[..., Spans],
    seconds: float,
    warmup_seconds: float,
    meter: _Meter,
    progress: _Progress,
) -> Spans:
    """One load, the warm-up its first part: no caller waits for another in between."""

    def on_tick(now_ns: int) -> None:
        progress.load(now_ns)
        if 0 <= now_ns < seconds * 1e9:
            meter.begin()

    if warmup_seconds == 0:
        meter.begin()
    return loop(seconds=seconds, warmup_seconds=warmup_seconds, on_tick=on_tick)


def _open(
    loop: Callable[..., Spans],
    seconds: float,
    warmup_seconds: float,
    poisson: bool,
    meter: _Meter,
    progress: _Progress,
) -> Spans:
    """Two loads, so that what the warm-up leaves over does not count."""
    if warmup_seconds > 0:
        # Even: one request at least falls due.
        spans = loop(seconds=warmup_seconds, poisson=False, on_tick=progress.warmup)
        if spans.is_interrupted:
            raise KeyboardInterrupt
    meter.begin()
    return loop(seconds=seconds, poisson=poisson, on_tick=progress.load)


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
    if rate is not None and rate > _HIGHEST_RATE:
        raise OptionError(f"rate must be at most {_HIGHEST_RATE:g} requests a second, got {rate!r}")
    for name, value in (("warmup_seconds", warmup_seconds), ("max_late_seconds", max_late_seconds)):
        if not 0 <= value < math.inf:
            raise OptionError(f"{name} must be 0 or more, got {value!r}")
    if poisson and rate is None:
        raise OptionError(
            "poisson needs a rate: random times are those of an open loop; give both, or neither"
        )


class _Progress:
    """From the clock of a loop, whose 0 is its begin, to seconds since the start of it all."""

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
    """Process and engine, read when the time to be measured begins and when it is over."""

    def __init__(self, target: Any, clock: Clock) -> None:
        reset_peak_memory()
        self._engine = target if isinstance(target, Engine) else None
        self._clock = clock
        self._has_begun = False
        # In case that the load is over before anybody finds that its warm-up is.
        self._first = self._read()

    def begin(self) -> None:
        """Where the time begins; only the first call counts."""
        if not self._has_begun:
            self._has_begun = True
            self._first = self._read()

    def end(self, spans: Spans) -> tuple[Usage, Stats | None, int]:
        """What was used and counted, and how many requests were answered meanwhile."""
        (first, counts_before), (last, counts) = self._first, self._read()
        ended = spans.ended_in_all
        num_answered = int(((ended > first.at_ns) & (ended <= last.at_ns)).sum())
        usage = first.until(last)
        if self._engine is None or counts is None or counts_before is None:
            return usage, None, num_answered
        now = self._engine.stats()
        stats = counts.since(counts_before).summary(
            usage.seconds, now.queue_depth, now.queue_depth_max, now.queue_capacity
        )
        return usage, stats, num_answered

    def _read(self) -> tuple[Reading, Counts | None]:
        counts = None if self._engine is None else self._engine._counts()
        return Reading.take(self._clock.now_ns()), counts
