"""A model in one call: compile_model, benchmark_model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from deepsched.advice import advise
from deepsched.context import Context
from deepsched.engine import Engine, Inputs
from deepsched.errors import OptionError
from deepsched.invocation.sequential_timing import BenchmarkResults
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batching.option import BatchingOption
from deepsched.models.custom_ops import CustomOps
from deepsched.models.locations import DEFAULT_CACHE, CacheDir
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.scheduler import Scheduler

logger = logging.getLogger("deepsched")


def compile_model(
    model: ModelLike,
    batch_size: BatchSize = AUTO,
    num_cores: int | None = None,
    num_streams: int | None = None,
    scheduler: Scheduler | str | None = None,
    input_shapes: Shapes | None = None,
    *,
    pin: str | None = None,
    context: Context | None = None,
    cache_dir: CacheDir = DEFAULT_CACHE,
    custom_ops: CustomOps = (),
    shrink_memory: bool = False,
    deterministic: bool = False,
    rewrites: str = "fast",
    batching: BatchingOption = "auto",
    cores: str | None = None,
    lease_timeout: float = 0.0,
) -> Engine:
    """Compiles `model`; see Engine for the parameters and errors.

    `scheduler="auto"` takes what `deepsched advise` recommends for a load that keeps all cores
    busy: it measures once for each model and machine, for 10 seconds or so, for slow models up to
    a minute (a log line says so), and remembers the answer in the cache folder, unless other
    processes took the CPUs meanwhile. If the model is too slow even for that, it takes the default.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> with compile_model(bundled_model("squeezenet"), scheduler="multi_stream") as engine:
        ...     engine.scheduler
        <Scheduler.multi_stream: 'multi_stream'>
    """
    if scheduler == "auto":
        if context is not None or num_streams is not None:
            raise OptionError(
                'scheduler="auto" chooses num_streams and makes a context of its own; leave '
                "num_streams and context out"
            )
        setting = advise(
            model,
            batch_size,
            input_shapes,
            num_cores=num_cores,
            seconds=8,
            cache_dir=cache_dir,
            custom_ops=custom_ops,
            rewrites=rewrites,
            batching=batching,
            compares_batches=False,
            on_progress=_tell_once(),
        ).setting
        scheduler, num_streams = setting.scheduler, setting.num_streams
        num_cores = num_cores if setting.num_cores is None else setting.num_cores
    return Engine(
        model,
        batch_size,
        num_cores,
        num_streams,
        scheduler,
        input_shapes,
        pin=pin,
        context=context,
        cache_dir=cache_dir,
        custom_ops=custom_ops,
        shrink_memory=shrink_memory,
        deterministic=deterministic,
        rewrites=rewrites,
        batching=batching,
        cores=cores,
        lease_timeout=lease_timeout,
    )


def benchmark_model(
    model: ModelLike,
    inp: Inputs,
    batch_size: BatchSize = AUTO,
    num_cores: int | None = None,
    num_streams: int | None = None,
    num_iterations: int = 20,
    num_warmup_iterations: int = 5,
    include_inputs: bool = False,
    include_outputs: bool = False,
    show_progress: bool = False,
    scheduler: Scheduler | str | None = None,
    input_shapes: Shapes | None = None,
) -> BenchmarkResults:
    """Compiles a model and times requests, one after the other: DeepSparse's function.

    Args:
        inp: what `Engine.run` takes.
        model, batch_size, num_cores, num_streams, scheduler, input_shapes: see compile_model.
        num_iterations, num_warmup_iterations, include_inputs, include_outputs, show_progress: see
            Engine.benchmark_loader.

    Example:
        >>> import numpy as np
        >>> from deepsched.benchmark import bundled_model
        >>> image = np.zeros((1, 3, 224, 224), np.float32)
        >>> results = benchmark_model(bundled_model("squeezenet"), [image], num_iterations=2)
        >>> results.num_items
        2
    """
    with compile_model(
        model, batch_size, num_cores, num_streams, scheduler, input_shapes
    ) as engine:
        return engine.benchmark(
            inp,
            num_iterations,
            num_warmup_iterations,
            include_inputs,
            include_outputs,
            show_progress,
        )


def _tell_once() -> Callable[[str], None]:
    """Is called before each measurement, and not if the answer is remembered."""
    calls = itertools.count()

    def tell(_: str) -> None:
        if next(calls) == 0:
            logger.warning(
                'scheduler="auto" measures this model, for about 10 s unless it is slow; the '
                "answer is kept for the next time, unless other processes take the CPUs meanwhile"
            )

    return tell
