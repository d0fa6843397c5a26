"""Which scheduler, how many streams and cores: measured for one model, on this machine.

As the user's guide teaches: first how a single request gets faster with cores, then what that says
of requests side by side, then the few settings that are left, under the load that is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3

from deepsched.benchmark.measurement import Measurement, measure
from deepsched.cache import Cache, default_folder, hash_file
from deepsched.compiled import CacheDir
from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import OptionError
from deepsched.model import ModelLike, Shapes, serialize
from deepsched.runtime.library import describe_library
from deepsched.version import __version__

# Settings within this of the best are as good: the simpler one is taken.
_AS_GOOD = 0.03

# A core more that saves less than this of a lone request's time is left free.
_LEAST_GAIN = 0.05


@dataclass(frozen=True)
class Setting:
    """What to give to `compile_model`."""

    scheduler: str
    num_streams: int | None
    num_cores: int | None

    def __str__(self) -> str:
        parts = [f'scheduler="{self.scheduler}"']
        if self.num_streams is not None:
            parts.append(f"num_streams={self.num_streams}")
        if self.num_cores is not None:
            parts.append(f"num_cores={self.num_cores}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Figures:
    """What a setting reached under the load."""

    setting: Setting
    items_per_sec: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Advice:
    """What `advise` recommends, and why."""

    setting: Setting
    batch_size: int | None
    reason: str
    cost_of_ignoring: str
    """What the default, single_stream on all cores, would give instead."""
    figures: tuple[Figures, ...]
    """What was measured under the load, the best first."""
    scaling_ms: dict[int, float]
    """By cores, the median latency of a lone request, ms."""
    load: str
    seconds: float
    """How long it took to find out."""
    was_remembered: bool = False

    def compile_line(self, model: str) -> str:
        """Python that follows the advice.

        >>> Advice(Setting("elastic", None, None), 1, "", "", (), {}, "", 0).compile_line("m.onnx")
        'compile_model("m.onnx", batch_size=1, scheduler="elastic")'
        """
        return f'compile_model("{model}", batch_size={self.batch_size}, {self.setting})'

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        rate: the load instead: requests a second, at random times.
        p99_limit_ms: settings whose 99th percentile is above that are out, if any is not.
        seconds: about how long to measure.
        remembers: look for, and keep, the result for this model, machine, load and these versions
            in the cache folder.
        on_progress: is told what is measured next.

    Returns:
        The setting with the most requests a second (a lone caller and a given rate: with the least
        latency); of those that are within 3 % of it, the simplest: elastic, single_stream,
        multi_stream; and no more cores than help.

    Raises:
        OptionError: callers and rate together, or values that make no sense.
        What Engine raises.
    """
    _check(callers, rate, p99_limit_ms, seconds)
    began = time.monotonic()
    say = on_progress or (lambda text: None)
    load = _Load.of(callers, rate, num_cores)
    memory = _Memory.of(model, cache_dir, [batch_size, input_shapes, num_cores, load.text,
                                           p99_limit_ms]) if remembers else None  # fmt: skip
    if memory is not None and (known := memory.recall()) is not None:
        return known

    def open_engine(setting: Setting) -> Engine:
        return Engine(
            model, batch_size, setting.num_cores, setting.num_streams, setting.scheduler,
            input_shapes, cache_dir=cache_dir,
        )  # fmt: skip

    scaling = _scaling(open_engine, num_cores, seconds / 4, say)
    candidates = _candidates(scaling, num_cores, load)
    figures = _compare(candidates, open_engine, load, 0.75 * seconds, say)
    best, reason = _choose(figures, scaling, load, p99_limit_ms)
    default = next(it for it in figures if it.setting == Setting("single_stream", None, num_cores))
    advice = Advice(
        setting=best.setting,
        batch_size=batch_size,
        reason=reason,
        cost_of_ignoring=_cost(best, default, load),
        figures=tuple(sorted(figures, key=lambda it: load.key(it))),
        scaling_ms=scaling,
        load=load.text,
        seconds=time.monotonic() - began,
    )
    if memory is not None:
        memory.keep(advice)
    return advice


def _check(
    callers: int | None, rate: float | None, p99_limit_ms: float | None, seconds: float
) -> None:
    if callers is not None and rate is not None:
        raise OptionError("give callers (a closed loop) or rate (requests a second), not both")
    if callers is not None and (type(callers) is not int or callers < 1):
        raise OptionError(f"callers must be a positive int, got {callers!r}")
    for name, value in (("rate", rate), ("p99_limit_ms", p99_limit_ms), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(f"{name} must be a positive number, got {value!r}")


# --- The load -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Load:
    callers: int | None
    rate: float | None
    text: str

    @classmethod
    def of(cls, callers: int | None, rate: float | None, num_cores: int | None) -> _Load:
        if rate is not None:
            return cls(None, rate, f"{rate:g} requests/s at random times")
        if callers is None:
            callers = 2 * _num_cores(num_cores)
        return cls(callers, None, f"{callers} caller{'s' * (callers > 1)} at once")

    @property
    def wants_latency(self) -> bool:
        return self.rate is not None or self.callers == 1

    def key(self, figures: Figures) -> float:
        """Less is better. At a given rate what counts is the mean of the usual and the bad case."""
        if self.rate is not None:
            return figures.p50_ms + figures.p99_ms
        return figures.p50_ms if self.callers == 1 else -figures.items_per_sec

    def put_on(self, engine: Engine, seconds: float) -> Measurement:
        return measure(
            engine, callers=self.callers, rate=self.rate, poisson=self.rate is not None,
            seconds=seconds, warmup_seconds=0.1 * seconds,
        )  # fmt: skip


def _num_cores(num_cores: int | None) -> int:
    with Context(num_cores, scheduler="single_stream") as context:
        return context.num_cores


# --- Measuring ------------------------------------------------------------------------------------


def _scaling(
    open_engine: Callable[[Setting], Engine], num_cores: int | None, seconds: float,
    say: Callable[[str], None],
) -> dict[int, float]:  # fmt: skip
    """The median latency of a lone request by cores, ms; stops where more cores do not help."""
    most = _num_cores(num_cores)
    widths = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    scaling: dict[int, float] = {}
    for cores in widths:
        say(f"a lone request on {cores} core{'s' * (cores > 1)}")
        with open_engine(Setting("single_stream", None, cores)) as engine:
            inputs = engine.generate_random_inputs()
            engine.run(inputs)
            times: list[float] = []
            end = time.perf_counter() + seconds / len(widths)
            while len(times) < 3 or time.perf_counter() < end:
                begin = time.perf_counter()
                engine.run(inputs)
                times.append(1e3 * (time.perf_counter() - begin))
            scaling[cores] = statistics.median(times)
        narrower = [value for width, value in scaling.items() if width < cores]
        if narrower and scaling[cores] > 1.1 * min(narrower):
            break  # it gets slower: wider ones do so too
    return scaling


def _candidates(scaling: dict[int, float], num_cores: int | None, load: _Load) -> list[Setting]:
    """Pruned by the curve: of the multi_streams, those that promise most."""
    most = _num_cores(num_cores)
    candidates = [Setting("single_stream", None, num_cores), Setting("elastic", None, num_cores)]
    enough = useful_cores(scaling)
    if enough < most:
        candidates.append(Setting("single_stream", None, enough))
    promised = {
        most // cores: (most // cores) / ms for cores, ms in scaling.items() if most // cores > 1
    }
    if load.callers != 1:
        by_promise = sorted(promised, key=lambda streams: -promised[streams])
        candidates += [Setting("multi_stream", streams, num_cores) for streams in by_promise[:3]]
    return candidates


def useful_cores(scaling: dict[int, float]) -> int:
    """As many cores as still make a lone request faster.

    >>> useful_cores({1: 10.0, 2: 6.0, 4: 5.9, 8: 5.8})
    2
    """
    best = min(scaling.values())
    return next(cores for cores in sorted(scaling) if scaling[cores] <= best / (1 - _LEAST_GAIN))


def _compare(
    candidates: Sequence[Setting], open_engine: Callable[[Setting], Engine], load: _Load,
    seconds: float, say: Callable[[str], None],
) -> list[Figures]:  # fmt: skip
    """Each under the load, in turns, so that a disturbance hits all."""
    num_rounds = 3
    each = max(0.3, seconds / num_rounds / len(candidates))
    seen: dict[Setting, list[Measurement]] = {setting: [] for setting in candidates}
    for number in range(num_rounds):
        for setting in candidates:
            say(f"{setting}, {load.text} ({number + 1} of {num_rounds})")
            with open_engine(setting) as engine:
                seen[setting].append(load.put_on(engine, each))
    return [
        Figures(
            setting,
            statistics.median(it.items_per_sec for it in measured),
            statistics.median(it.percentile(50) for it in measured),
            statistics.median(it.percentile(99) for it in measured),
        )
        for setting, measured in seen.items()
    ]


# --- Choosing -------------------------------------------------------------------------------------


def _choose(
    figures: list[Figures], scaling: dict[int, float], load: _Load, p99_limit_ms: float | None
) -> tuple[Figures, str]:
    allowed = [it for it in figures if p99_limit_ms is None or it.p99_ms <= p99_limit_ms]
    limit = ""
    if p99_limit_ms is not None:
        limit = (
            f" within a p99 of {p99_limit_ms:g} ms"
            if allowed
            else f" (no setting stays within a p99 of {p99_limit_ms:g} ms)"
        )
    allowed = allowed or figures
    best = min(load.key(it) for it in allowed)
    # Less is better, whether it is a latency or a negative rate.
    as_good = [it for it in allowed if load.key(it) <= best + _AS_GOOD * abs(best)]
    chosen = min(as_good, key=lambda it: _simplicity(it.setting))
    enough = useful_cores(scaling)
    scales = (
        f"a lone request takes {scaling[min(scaling)]:.2f} ms on one core, "
        f"{min(scaling.values()):.2f} ms on {enough}, and more cores do not help"
        if enough < max(scaling)
        else f"a lone request gets faster with every core: {scaling[min(scaling)]:.2f} ms on one, "
        f"{scaling[max(scaling)]:.2f} ms on {max(scaling)}"
        if len(scaling) > 1
        else "there is one core"
    )
    what = "the least latency" if load.wants_latency else "the most requests a second"
    return chosen, f"{scales}. With {load.text} it gives {what}{limit}."


def _simplicity(setting: Setting) -> tuple[int, int]:
    """elastic stays right when the load changes; fewer cores leave some for others."""
    order = ("elastic", "single_stream", "multi_stream")
    if setting.scheduler == "single_stream" and setting.num_cores is not None:
        return 0, setting.num_cores
    return 1 + order.index(setting.scheduler), 0


def _cost(best: Figures, default: Figures, load: _Load) -> str:
    if best.setting == default.setting:
        return "nothing: it is the default"
    if load.wants_latency:
        return (
            f"single_stream on all cores: p50 {default.p50_ms:.2f} ms instead of "
            f"{best.p50_ms:.2f}, p99 {default.p99_ms:.2f} instead of {best.p99_ms:.2f}"
        )
    return (
        f"single_stream on all cores: {default.items_per_sec:.1f} items/s instead of "
        f"{best.items_per_sec:.1f}"
    )


# --- Remembering ----------------------------------------------------------------------------------


class _Memory:
    """A file in the cache folder for one question."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, model: ModelLike, cache_dir: CacheDir, question: list[Any]) -> _Memory | None:
        """None: there is no cache to remember in."""
        if cache_dir is None:
            return None
        try:
            folder = Cache(default_folder() if cache_dir == "default" else Path(cache_dir)).folder
            if isinstance(model, (str, os.PathLike)):
                content = hash_file(os.fspath(model))
            else:
                content = blake3.blake3(serialize(model)).hexdigest()
            with Context(scheduler="single_stream") as context:
                machine = context.topology.to_dict()
            parts = [content, question, machine, __version__, describe_library()["version"]]
            key = blake3.blake3(json.dumps(parts, default=str).encode()).hexdigest()[:32]
        except (OSError, AttributeError, TypeError, ValueError):
            return None
        return cls(folder / f".advice-{key}.json")

    def recall(self) -> Advice | None:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            figures = tuple(
                Figures(**{**it, "setting": Setting(**it["setting"])}) for it in kept["figures"]
            )
            kept |= {
                "setting": Setting(**kept["setting"]),
                "figures": figures,
                "scaling_ms": {int(cores): ms for cores, ms in kept["scaling_ms"].items()},
                "was_remembered": True,
            }
            return Advice(**kept)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, advice: Advice) -> None:
        with contextlib.suppress(OSError):  # then it is measured anew
            fd, name = tempfile.mkstemp(dir=self._path.parent, prefix=".advice-")
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(advice.to_dict(), file)
            os.replace(name, self._path)
