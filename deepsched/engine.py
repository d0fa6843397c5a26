"""Engine and MultiModelEngine: what a user holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from deepsched.context import Context
from deepsched.errors import (
    ClosedError,
    InferenceError,
    InputError,
    InputTypeError,
    OptionError,
)
from deepsched.invocation.batches import cut_batch, join_batch
from deepsched.invocation.event_loop import run_on_loop
from deepsched.invocation.futures import RequestFuture
from deepsched.invocation.progress import tracked
from deepsched.invocation.request_map import RequestMap
from deepsched.invocation.sequential_timing import BenchmarkResults, timed_requests
from deepsched.machine.partition import Stream
from deepsched.models.compiled import DEFAULT, CacheDir, Compiled, open_model
from deepsched.models.memory_usage import Memory, arenas, measure
from deepsched.models.prepare import ModelLike, Shapes, explain_override
from deepsched.models.random_inputs import open_sizes, random_value
from deepsched.runtime.model import Model
from deepsched.scheduler import Scheduler
from deepsched.scheduling.stats import Counts, Stats
from deepsched.timeline.trace import TracedModel

logger = logging.getLogger("deepsched")

Shape = tuple[int | str | None, ...]
Inputs = Sequence[Any] | Mapping[str, Any]


class Engine:
    """A model, compiled for the streams of a context.

    Safe to call from any number of threads at once.

    Args:
        model: the path of an ONNX file, its bytes, or an onnx.ModelProto.
        batch_size: the first dimension of every input, whatever the model's file says; None
            leaves it as the file has it, so any batch where that is open.
        num_cores, num_streams, scheduler, pin: see Context; for an engine with a context of its
            own. `scheduler` is "single_stream" unless given.
        input_shapes: a shape for each input in the graph's order, such as [[1, 3, 320, 320]], in
            place of the model's; `batch_size`, unless it is 1, must agree with them.
        context: the streams to share with other engines.
        cache_dir: the folder to keep compiled models in; None keeps this one in memory, for this
            process only. By default DEEPSCHED_CACHE_DIR, or `deepsched` in the user's cache folder.

    Raises:
        ModelNotFoundError, InvalidModelError, UnsupportedModelError: the model cannot be used.
        ShapeOverrideError: it cannot be compiled for this batch_size or these input_shapes.
        StreamConfigError, OptionError: an option cannot be had.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> engine = Engine(bundled_model("squeezenet"))
        >>> [output.shape for output in engine(engine.generate_random_inputs())]
        [(1, 1000, 1, 1)]
        >>> engine.close()
    """

    _is_closed = True  # until there is something to close

    def __init__(
        self,
        model: ModelLike,
        batch_size: int | None = 1,
        num_cores: int | None = None,
        num_streams: int | None = None,
        scheduler: Scheduler | str | None = None,
        input_shapes: Shapes | None = None,
        *,
        pin: str | None = None,
        context: Context | None = None,
        cache_dir: CacheDir = DEFAULT,
    ) -> None:
        self._owns_context = context is None
        if context is None:
            context = Context(
                num_cores,
                num_streams,
                Scheduler.default if scheduler is None else scheduler,
                "core" if pin is None else pin,
                _is_shared=False,
            )
        elif not isinstance(context, Context):
            raise OptionError(f"context must be a Context, got {context!r}")
        elif (num_cores, num_streams, scheduler, pin) != (None,) * 4:
            raise OptionError(
                "num_cores, num_streams, scheduler and pin are the context's; give them to "
                "Context(...) when engines share one"
            )
        self._context = context
        try:
            self._opened = open_model(
                model, batch_size, input_shapes, cache_dir, context._groups, context._open_session
            )
            self._model: Model = Model(context._dispatcher, self._opened.sessions)
            self._arenas = arenas(self._opened.sessions)
            if context.scheduler == Scheduler.elastic:
                self._measure_speed()
            self._born = time.monotonic()
            self._is_closed = False
            context._adopt(self)
            if self._opened.changed_fixed_sizes:
                self._try_out(input_shapes)
        except BaseException:
            self._abort_init()
            raise

    def _measure_speed(self) -> None:
        try:
            inputs = self.generate_random_inputs()
            self._context._measure_speed(self._model, inputs, self._opened.compiled.folder)
        except (OptionError, InputError, InferenceError) as error:
            logger.warning(
                "requests take one stream each, since how the model scales cannot be measured with "
                "made-up inputs: %s",
                error,
            )

    def _try_out(self, input_shapes: Shapes | None) -> None:
        try:
            self.run(self.generate_random_inputs())
        except (InputError, InferenceError) as error:
            raise explain_override(error, self.batch_size, input_shapes) from error

    def _abort_init(self) -> None:
        if self._owns_context:
            self._context.close()
        elif not self._is_closed:
            self._close_model()

    # --- What the model is ------------------------------------------------------------------

    @property
    def model_path(self) -> str | None:
        """The file that the model came from; None if it was given as bytes or as a ModelProto."""
        return self._opened.path

    @property
    def batch_size(self) -> int | None:
        """The batch that it was compiled for; None for what the model's file takes."""
        return self._opened.batch_size

    @property
    def input_names(self) -> list[str]:
        """In the graph's order, which is the order that `run` takes a list in."""
        return [info.name for info in self._model.inputs]

    @property
    def input_shapes(self) -> list[Shape]:
        """Of each input: an int, a symbol's name or None (both: any size) for each dimension."""
        return [info.shape for info in self._model.inputs]

    @property
    def input_dtypes(self) -> list[np.dtype[Any]]:
        """Of each input; object for strings."""
        return [info.dtype for info in self._model.inputs]

    @property
    def output_names(self) -> list[str]:
        """In the graph's order, which is the order that `run` returns."""
        return [info.name for info in self._model.outputs]

    @property
    def output_shapes(self) -> list[Shape]:
        """Of each output, as `input_shapes`."""
        return [info.shape for info in self._model.outputs]

    @property
    def output_dtypes(self) -> list[np.dtype[Any]]:
        """Of each output; object for strings."""
        return [info.dtype for info in self._model.outputs]

    # --- Where it runs ----------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """The context whose streams it uses."""
        return self._context

    @property
    def scheduler(self) -> Scheduler:
        """Which requests may run side by side."""
        return self._context.scheduler

    @property
    def num_cores(self) -> int:
        """How many physical cores it uses."""
        return self._context.num_cores

    @property
    def num_streams(self) -> int:
        """How many requests run side by side."""
        return self._context.num_streams

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The slices of the machine that requests run on."""
        return self._context.streams

    @property
    def compiled(self) -> Compiled:
        """Whether its sessions share one copy of the weights, and where that is kept."""
        return self._opened.compiled

    def memory(self) -> Memory:
        """What its memory goes into, read from the process's own maps; takes milliseconds.

        Raises:
            ClosedError: it has been closed.
        """
        if self._is_closed:
            raise ClosedError("this engine is closed, and its memory freed")
        return measure(self._opened.sessions, self._arenas, self._opened.inodes)

    @property
    def _traced(self) -> TracedModel:
        name = Path(self.model_path).stem if self.model_path else "model"
        return TracedModel(name, self.batch_size)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.model_path or 'model'}: batch_size={self.batch_size}, "
            f"{self.scheduler}, {self.num_cores} cores in {self.num_streams} streams"
            f"{', closed' if self._is_closed else ''}>"
        )

    # --- Running it -------------------------------------------------------------------------

    def run(
        self,
        inp: Inputs,
        val_inp: bool = True,
        *,
        timeout: float | None = None,
        priority: int = 0,
    ) -> list[Any]:
        """Runs one request and returns its outputs; blocks until they are there.

        Args:
            inp: an array for each input in the graph's order, or a mapping by input name. A
                C-contiguous array of the input's dtype is not copied and must not be changed
                during the call. Sequences are lists, maps are dicts, an optional may be None.
            timeout: seconds for waiting and running together. A request whose time passes in the
                queue never runs; one that runs is stopped at the next operator.
            priority: 1 goes before 0, and 0 before -1; within one, first come, first served. Of
                16 requests that are begun while all classes wait, one is the oldest of -1 and one
                the oldest of 0, so none starves.
            val_inp: False skips the check of dtype and shape of C-contiguous arrays. A wrong
                dtype then gives wrong numbers instead of an error.

        Returns:
            An output for each of the graph's, in its order: an array that owns its memory, or a
            list, a dict or None where the model says so.

        Raises:
            InputError, InputTypeError: the inputs do not fit; names the input.
            InferenceError: a kernel failed.
            DeadlineExceeded: the timeout passed.
            ClosedError, ForkError: the engine is closed, or belongs to a parent process.
        """
        if type(inp) is not list:
            inp = self._in_order(inp)
        return self._model.run(inp, timeout, priority, val_inp)

    def __call__(self, inp: Inputs, val_inp: bool = True, **options: Any) -> list[Any]:
        """The same as `run`."""
        return self.run(inp, val_inp, **options)

    def mapped_run(self, inp: Inputs, val_inp: bool = True, **options: Any) -> dict[str, Any]:
        """`run`, with the outputs by name."""
        return dict(zip(self.output_names, self.run(inp, val_inp, **options), strict=True))

    def submit(
        self,
        inp: Inputs,
        val_inp: bool = True,
        *,
        timeout: float | None = None,
        priority: int = 0,
        block: bool = True,
    ) -> RequestFuture:
        """Queues a request and returns its future, a concurrent.futures.Future.

        The future's `cancel()` withdraws the request, or stops it where it runs. Callbacks run in
        the context's own Python thread. The arrays must not be changed until it is done.

        Args:
            inp, timeout, priority, val_inp: see `run`.
            block: whether to wait if `queue_capacity` requests wait already.

        Raises:
            QueueFull: there is no room, and `block` is False.
            What `run` raises for inputs that do not fit; the rest comes with the future.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     future = engine.submit(engine.generate_random_inputs(), timeout=10)
            ...     [output.shape for output in future.result()]
            [(1, 1000, 1, 1)]
        """
        if type(inp) is not list:
            inp = self._in_order(inp)
        return self._context._resolver.submit(self._model, inp, timeout, priority, val_inp, block)

    def run_async(
        self,
        inp: Inputs,
        val_inp: bool = True,
        *,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Coroutine[Any, Any, list[Any]]:
        """`run` for asyncio, to be awaited: it neither blocks the event loop nor makes a thread.

        Cancelling the task withdraws the request, or stops it where it runs. Where the queue is
        full it waits for room. For arguments and errors see `run`; the arrays must not be changed
        until it is done.
        """
        if type(inp) is not list:
            inp = self._in_order(inp)
        return run_on_loop(self._model, inp, timeout, priority, val_inp)

    def map(
        self,
        iterable: Iterable[Inputs],
        in_flight: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        *,
        priority: int = 0,
        val_inp: bool = True,
    ) -> Iterator[list[Any]]:
        """Runs a request for each item and yields the outputs, from one Python thread.

        Items are taken only as requests end, so neither they nor the results pile up.

        Args:
            iterable: inputs as `run` takes them.
            in_flight: how many requests to have under way; None for as many as keep all streams
                busy.
            ordered: whether results come in the order of the items, or as they are done.
            progress: whether to draw a progress bar on stderr.
            priority, val_inp: see `run`.

        Raises:
            What `run` raises for an item, in that item's place; the requests behind it are
            cancelled. A generator that is closed early cancels what is under way.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet"), scheduler="multi_stream") as engine:
            ...     items = (engine.generate_random_inputs() for _ in range(4))
            ...     sum(outputs[0].size for outputs in engine.map(items))
            4000
        """
        requests = RequestMap(
            self._model, self._in_order, self.num_streams, in_flight, ordered, priority, val_inp
        )
        results = requests.over(iterable)
        if not progress:
            return results
        total = len(iterable) if isinstance(iterable, Sized) else None
        return tracked(results, "requests", total)

    def batched_run(self, inp: Inputs, *, priority: int = 0, val_inp: bool = True) -> list[Any]:
        """Runs a large batch, cut along the first dimension into parts for all streams.

        With batch_size=None the parts are as many as there are streams; else they are of
        batch_size, which must divide the batch.

        Args:
            inp: as `run` takes them, with a longer first dimension, the same in all.
            priority, val_inp: see `run`.

        Returns:
            The outputs, joined along their first dimension.

        Raises:
            InputError: the batch cannot be cut so, or an output has no first dimension.
            What `run` raises.
        """
        parts = cut_batch(self._in_order(inp), self.batch_size, self.num_streams)
        results = self.map(parts, priority=priority, val_inp=val_inp)
        return join_batch(list(results), self.output_names)

    def timed_run(self, inp: Inputs, val_inp: bool = False) -> tuple[list[Any], float]:
        """`run`, and the seconds from the call to the answer. Inputs are not checked by default.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     outputs, seconds = engine.timed_run(engine.generate_random_inputs())
            >>> seconds > 0
            True
        """
        begin = time.perf_counter()
        outputs = self.run(inp, val_inp=val_inp)
        return outputs, time.perf_counter() - begin

    def benchmark(
        self,
        inp: Inputs,
        num_iterations: int = 20,
        num_warmup_iterations: int = 5,
        include_inputs: bool = False,
        include_outputs: bool = False,
        show_progress: bool = False,
    ) -> BenchmarkResults:
        """Runs the same inputs again and again, one request after the other, and times each.

        `deepsched.benchmark.measure` has loads of several callers. For the rest see
        `benchmark_loader`.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     results = engine.benchmark(engine.generate_random_inputs(), num_iterations=3)
            >>> len(results), results.ms_per_batch > 0
            (3, True)
        """
        return self.benchmark_loader(
            [inp],
            num_iterations,
            num_warmup_iterations,
            include_inputs,
            include_outputs,
            show_progress,
        )

    def benchmark_loader(
        self,
        loader: Iterable[Inputs],
        num_iterations: int = 20,
        num_warmup_iterations: int = 5,
        include_inputs: bool = False,
        include_outputs: bool = False,
        show_progress: bool = False,
    ) -> BenchmarkResults:
        """Runs what `loader` gives, one request after the other, and times each.

        Args:
            loader: inputs as `run` takes them; gone through again when it is used up.
            num_iterations: how many requests to time.
            num_warmup_iterations: how many to run before.
            include_inputs, include_outputs: whether to keep these with the results.
            show_progress: whether to draw a progress bar on stderr.

        Raises:
            OptionError: a number is too small, or the loader runs out of inputs for good.
            What `run` raises.
        """
        return timed_requests(
            self.run,
            loader,
            self.batch_size,
            num_iterations,
            num_warmup_iterations,
            include_inputs,
            include_outputs,
            show_progress,
        )

    def stats(self) -> Stats:
        """What happened to its requests so far; queue figures are the context's."""
        return self._context._summary(self._counts(), self._born)

    def _counts(self) -> Counts:
        counts = self._context._new_counts()
        counts.add(self._model.counts())
        return counts

    def _in_order(self, inputs: Inputs) -> list[Any]:
        if isinstance(inputs, Mapping):
            unknown = [name for name in inputs if name not in self.input_names]
            missing = [
                info.name
                for info in self._model.inputs
                if info.name not in inputs and info.kind != "optional"
            ]
            if unknown or missing:
                raise InputError(
                    f"expected inputs named {self.input_names}; missing {missing}, "
                    f"unknown {unknown}"
                )
            return [inputs.get(name) for name in self.input_names]
        if isinstance(inputs, (list, tuple)):
            return list(inputs)
        raise InputTypeError(
            "expected a list with an array for each input, or a mapping by input name, got "
            f"{type(inputs).__name__}; for a model with one input: run([x])"
        )

    def generate_random_inputs(self) -> list[Any]:
        """An array for each input that fits it; sizes that may be any are batch_size, then 1."""
        rng = np.random.default_rng(0)
        return [random_value(rng, info, self.batch_size or 1) for info in self._model.inputs]

    def _tried_inputs(self, warns: bool = False) -> list[Any]:
        """Random inputs that it has answered once. `warns`: whether to log the sizes made up.

        Raises:
            InferenceError: it fails; says so if made-up sizes may be the reason.
        """
        inputs = self.generate_random_inputs()
        made_up = open_sizes(self._model.inputs, inputs)
        hint = "input_shapes (on the command line --input-shapes) gives others"
        try:
            self.run(inputs)
        except InferenceError as error:
            if not made_up:
                raise
            raise InferenceError(
                f"{error}. The inputs were made up, with size 1 where the model leaves a size open "
                f"({made_up}); {hint}"
            ) from error
        if made_up and warns:
            logger.warning("sizes that the model leaves open are 1 (%s); %s", made_up, hint)
        return inputs

    # --- Its end ----------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called, here or on the context."""
        return self._is_closed

    def close(self) -> None:
        """Ends queued requests as closed, waits for the running ones, frees everything.

        Calls after that raise ClosedError. May be called again.
        """
        if self._owns_context:
            self._context.close()
        else:
            self._close_model()

    def _close_model(self) -> None:
        was_closed, self._is_closed = self._is_closed, True
        self._model.close()
        if not was_closed:
            self._context._roster.retire(self._model)
            if self._opened.entry is not None:
                self._opened.entry.close()

    def __enter__(self) -> Engine:
        if self._is_closed:
            raise ClosedError("this engine is closed; compile the model again to use it")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._is_closed:
            self.close()


class MultiModelEngine(Engine):
    """An engine that shares a context's streams with others: DeepSparse's form of it.

    Args:
        model, batch_size, input_shapes: see Engine.
        context: the streams to share.
    """

    def __init__(
        self,
        model: ModelLike,
        batch_size: int | None,
        context: Context,
        input_shapes: Shapes | None = None,
    ) -> None:
        super().__init__(model, batch_size, input_shapes=input_shapes, context=context)
