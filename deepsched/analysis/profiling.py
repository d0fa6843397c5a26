"""Times a model on a given number of cores, with ONNX Runtime's profiler and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.analysis.constants import NodeConstants, read_constants
from deepsched.analysis.reading import OperatorKey, Profile, read_events, read_profile
from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import ModelError, OptionError
from deepsched.models.batch import BatchSize
from deepsched.models.custom_ops import CustomOps
from deepsched.models.locations import CacheDir, temporary_folder
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.models.random_inputs import tried_inputs
from deepsched.models.rewrites.tried import Tried
from deepsched.scheduler import Scheduler
from deepsched.scheduling.layout import lay_out
from deepsched.scheduling.placement import Inspection
from deepsched.scheduling.streams import SharedStreams

# Approximate limit for one profile, where each event is a line of about a kilobyte.
_MAX_EVENTS = 50_000


class ProfilingTarget(NamedTuple):
    """The model to profile, and its inputs."""

    model: ModelLike
    batch_size: BatchSize
    input_shapes: Shapes | None
    inputs: Any
    """As `Engine.run` takes them; None for random ones."""
    cache_dir: CacheDir
    optimizes: bool
    """Whether ONNX Runtime may fuse and replace operators, as it does for engines."""
    custom_ops: CustomOps = ()
    rewrites: str = "none"
    """These as Engine takes them."""


class RunBudget(NamedTuple):
    """Number of runs: as many as fit into `seconds`, within bounds."""

    num_warmups: int
    """Runs before those, which are not counted."""
    min_runs: int
    max_runs: int
    seconds: float


_OnRun = Callable[[], None]


def _nothing() -> None:
    pass


def time_plain(
    target: ProfilingTarget,
    num_cores: int,
    budget: RunBudget,
    warns: bool = False,
    on_run: _OnRun = _nothing,
) -> list[float]:
    """Latency of each run without the profiler, in ms. `on_run` is called after each; `warns`: see
    tried_inputs."""
    with _open(target, num_cores, None) as engine:
        return _repeat(engine, target.inputs, budget, warns, on_run)


class ProfiledRuns(NamedTuple):
    """The profile of some runs, and what it omits."""

    profile: Profile
    constants: dict[OperatorKey, NodeConstants]
    """Constants of the graph that ran; empty if it has no file."""
    batch_size: int | None
    rewrites: tuple[Tried, ...]


def profile(
    target: ProfilingTarget, num_cores: int, budget: RunBudget, on_run: _OnRun = _nothing
) -> ProfiledRuns:
    """Runs the model under ONNX Runtime's profiler. `on_run` is called after each run.

    Raises:
        ModelError: one run has more events than ONNX Runtime's profiler keeps.
        OptionError: there is no folder for temporary files, which it writes to.
    """
    with _prefix_to_profile_to() as prefix:
        with _open(target, num_cores, prefix) as engine:
            opened = engine._served.opened
            entry = opened.entry
            constants = {} if entry is None else read_constants(entry.model)
            max_runs = min(budget.max_runs, _MAX_EVENTS // max(1, len(constants)))
            budget = budget._replace(max_runs=max(budget.min_runs, max_runs))
            num_runs = len(_repeat(engine, target.inputs, budget, on_run=on_run))
            (session,) = opened.sessions
            events = read_events(Path(session.end_profiling()))
            # Includes trial runs of the engine itself, while it was opened.
            num_before = engine.stats().done - num_runs
        found = read_profile(events, num_before)
    if not found.run_us:
        raise ModelError(
            f"{num_before + 1} runs have more operator calls than the million that ONNX Runtime's "
            "profiler keeps (each pass of a loop counts); analyse the model with smaller inputs"
        )
    return ProfiledRuns(found, constants, engine.batch_size, engine.compiled.rewrites)


@contextmanager
def _prefix_to_profile_to() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder())
            prefix = str(folder.inside("run"))
        except OSError as error:
            raise OptionError(
                "ONNX Runtime's profiler needs a folder for temporary files, which TMPDIR chooses: "
                f"{error}"
            ) from error
        yield prefix


@contextmanager
def _open(target: ProfilingTarget, num_cores: int, profile_to: str | None) -> Iterator[Engine]:
    layout = lay_out(num_cores, None, Scheduler.single_stream, "auto", None)
    inspection = Inspection(profile_to, target.optimizes)
    # Exclusive, so that ONNX Runtime's threads spin as in an engine that has its own context.
    context = Context._over(SharedStreams(layout, is_exclusive=True, inspection=inspection))
    with (
        context,
        Engine(
            target.model,
            target.batch_size,
            input_shapes=target.input_shapes,
            context=context,
            cache_dir=target.cache_dir,
            custom_ops=target.custom_ops,
            rewrites=target.rewrites,
        ) as engine,
    ):
        yield engine


def _repeat(
    engine: Engine,
    inputs: Any,
    budget: RunBudget,
    warns: bool = False,
    on_run: _OnRun = _nothing,
) -> list[float]:
    """Latency of each run after the warm-up, in ms."""
    num_warmups = budget.num_warmups
    if inputs is None:
        model = engine._served.model
        inputs = tried_inputs(model.inputs, engine.batch_size, engine.run, warns)
        num_warmups -= 1  # tried_inputs ran the model once
    for _ in range(num_warmups):
        engine.run(inputs)
    times: list[float] = []
    end = time.perf_counter() + budget.seconds
    while len(times) < budget.min_runs or (
        len(times) < budget.max_runs and time.perf_counter() < end
    ):
        begin = time.perf_counter()
        engine.run(inputs)
        times.append(1e3 * (time.perf_counter() - begin))
        on_run()
    return times
