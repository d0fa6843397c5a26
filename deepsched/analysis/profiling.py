"""Runs a model with ONNX Runtime's profiler, on so many cores."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.analysis.constants import NodeConstants, read_constants
from deepsched.analysis.reading import Key, Profile, events_of, read
from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import ModelError
from deepsched.models.locations import CacheDir
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.models.random_inputs import tried_inputs
from deepsched.scheduler import Scheduler
from deepsched.scheduling.layout import lay_out
from deepsched.scheduling.streams import Inspection, SharedStreams

# Of one timeline, about; each is a line of a kilobyte.
_MOST_EVENTS = 50_000


class Subject(NamedTuple):
    """What is analysed."""

    model: ModelLike
    batch_size: int | None
    input_shapes: Shapes | None
    inputs: Any
    """What `Engine.run` takes; None for random ones."""
    cache_dir: CacheDir
    optimizes: bool
    """Whether ONNX Runtime may fuse and replace operators, as it does for engines."""


class Runs(NamedTuple):
    """As many runs as fit into `seconds`, within bounds."""

    num_warmups: int
    """Before those; they do not count."""
    least: int
    most: int
    seconds: float


def time_plain(subject: Subject, num_cores: int, runs: Runs, warns: bool = False) -> list[float]:
    """How long requests take that nobody looks into, ms. `warns`: see tried_inputs."""
    with _open(subject, num_cores, None) as engine:
        return _repeat(engine, subject.inputs, runs, warns)


class Profiled(NamedTuple):
    """Runs that were looked into."""

    profile: Profile
    constants: dict[Key, NodeConstants]
    """Of the graph that ran; empty where it has no file."""
    batch_size: int | None


def profile(subject: Subject, num_cores: int, runs: Runs) -> Profiled:
    """What each operator took in each run.

    Raises:
        ModelError: the operators of one run are more than ONNX Runtime keeps.
    """
    with tempfile.TemporaryDirectory(prefix="deepsched-profile-") as folder:
        with _open(subject, num_cores, str(Path(folder, "run"))) as engine:
            opened = engine._served.opened
            entry = opened.entry
            constants = {} if entry is None else read_constants(entry.model)
            most = max(runs.least, min(runs.most, _MOST_EVENTS // max(1, len(constants))))
            num_runs = len(_repeat(engine, subject.inputs, runs._replace(most=most)))
            (session,) = opened.sessions
            timeline = Path(session.end_profiling())
            # Engines may have run before they are asked to, to try a model out.
            num_before = engine.stats().done - num_runs
        found = read(events_of(timeline), num_before)
    if not found.run_us:
        raise ModelError(
            f"{num_before + 1} runs have more operators than ONNX Runtime's timeline has room for "
            "(a million; those in loops count each time); analyse it with smaller inputs"
        )
    return Profiled(found, constants, engine.batch_size)


@contextmanager
def _open(subject: Subject, num_cores: int, profile_to: str | None) -> Iterator[Engine]:
    layout = lay_out(num_cores, None, Scheduler.single_stream, "core", None)
    inspection = Inspection(profile_to, subject.optimizes)
    # Exclusive, as an engine's own context: it spins as plain ONNX Runtime does.
    context = Context._over(SharedStreams(layout, is_exclusive=True, inspection=inspection))
    with (
        context,
        Engine(
            subject.model,
            subject.batch_size,
            input_shapes=subject.input_shapes,
            context=context,
            cache_dir=subject.cache_dir,
        ) as engine,
    ):
        yield engine


def _repeat(engine: Engine, inputs: Any, runs: Runs, warns: bool = False) -> list[float]:
    """Milliseconds of each run but the warm-ups."""
    num_warmups = runs.num_warmups
    if inputs is None:
        model = engine._served.model
        inputs = tried_inputs(model.inputs, engine.batch_size, engine.run, warns)
        num_warmups -= 1
    for _ in range(num_warmups):
        engine.run(inputs)
    times: list[float] = []
    end = time.perf_counter() + runs.seconds
    while len(times) < runs.least or (len(times) < runs.most and time.perf_counter() < end):
        begin = time.perf_counter()
        engine.run(inputs)
        times.append(1e3 * (time.perf_counter() - begin))
    return times
