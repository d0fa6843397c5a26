"""Engine and MultiModelEngine: a compiled model and the calls that run it."""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from deepsched.checks import check_flag
from deepsched.context import Context
from deepsched.errors import (
    ClosedError,
    ForkError,
    InferenceError,
    InputError,
    InputTypeError,
    OptionError,
)
from deepsched.formatting import counted
from deepsched.invocation.batches import join_batch, split_batch
from deepsched.invocation.event_loop import run_on_loop
from deepsched.invocation.futures import RequestFuture
from deepsched.invocation.progress import tracked
from deepsched.invocation.request_map import RequestMap
from deepsched.invocation.sequential_timing import BenchmarkResults, timed_requests
from deepsched.machine.partition import Stream
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batching.option import BatchingOption, check_batching
from deepsched.models.compiled import Compiled
from deepsched.models.custom_ops import CustomOps, check_custom_ops
from deepsched.models.locations import DEFAULT_CACHE, CacheDir
from deepsched.models.memory_usage import Memory, memory_usage
from deepsched.models.prepare import ModelLike, Shapes, explain_override
from deepsched.models.random_inputs import random_inputs
from deepsched.models.rewrites.option import check_rewrites
from deepsched.recipe import Uncopied, recipe_of, remake
from deepsched.runtime.model import Model
from deepsched.scheduler import Scheduler
from deepsched.scheduling.determinism import warn_of_varying_bits
from deepsched.scheduling.layout import log_warnings
from deepsched.scheduling.opening import Opener
from deepsched.scheduling.stats import Stats
from deepsched.scheduling.streams import Asked, share_streams

Shape = tuple[int | str | None, ...]
Inputs = Sequence[Any] | Mapping[str, Any]


class Engine(Uncopied):
    """A model, compiled for the streams of a context.

    Safe to call from any number of threads at once. Pickled, it is the call that made it: where it
    is unpickled the model is opened anew, with the same options.

    Args:
        model: the path of an ONNX file, its bytes, or an onnx.ModelProto. Bytes are held until the
            engine is closed, to be pickled; a ModelProto as its bytes.
        batch_size: the first dimension of the inputs that have a batch, whatever the model's file
            says. "auto" is 1 where the file leaves it open, and keeps all else; None keeps the
            file's, which is any batch where the file leaves it open. Which inputs have a batch is
            told by the symbol of an open first dimension: one that names the batch or that most
            inputs share, and not one that names a length or comes after an open dimension.
        num_cores, num_streams, pin, cores, lease_timeout: see Context; only for an engine with a
            context of its own.
        scheduler: a member of Scheduler or its name, "single_stream" unless given; as above, only
            for an engine with a context of its own.
        input_shapes: a shape for each input in the graph's order, such as [[1, 3, 320, 320]],
            replacing the model's, or None in its place; a `batch_size` other than 1 must agree
            with them.
        context: the streams to share with other engines.
        cache_dir: the folder of compiled models; None compiles in memory, for this process only.
            By default DEEPSCHED_CACHE_DIR, or `deepsched` in the user's cache folder; None for a
            model that is no file, whose weights are written to no disk unless a folder is given.
        custom_ops: paths of libraries of operators, such as that of onnxruntime-extensions. Their
            code runs in this process.
        shrink_memory: whether each request gives back the memory that its run took, rather than
            keep it for the next; see `run`.
        deterministic: whether the same input always gives the same bits. Some operators of
            onnxruntime give other last bits on another number of cores. So all requests then run
            on as many as the smallest stream has: elastic gives each one stream, and larger
            streams leave cores unused. Where an operator varies from run to run on several cores,
            they run on one.
        rewrites: how the graph may be changed into what ONNX Runtime runs faster: "fast" keeps
            float32's accuracy; "exact" keeps every bit of plain onnxruntime's outputs; "none"
            changes nothing. `compiled.rewrites` tells what was done, and what it gained.
        batching: whether requests that wait for this model run together, as one batch, as soon as
            a stream is free: none ever waits for others. "auto" does so where that saves a fifth or
            more of an item's CPU time, and outputs move by last bits at most, with rewrites other
            than "fast" and with `deterministic` by none. A number of items does so in any case, up
            to so many in a run, even if answers come to depend on the others of a batch. "off"
            never does. `compiled.batching` tells what was found.

    Raises:
        ModelNotFoundError, InvalidModelError, UnsupportedModelError: the model cannot be used.
        ShapeOverrideError: it cannot be compiled for this batch_size or these input_shapes.
        StreamConfigError: the streams are not possible on this machine.
        LeaseError: too few cores are free for a lease; names who has them.
        OptionError: an option has a value that is not allowed; or deterministic is True, and the
            model draws random numbers; or batching is a number, and the model's inputs and outputs
            share no open first dimension, or its items are not independent, or two requests have
            more items than that.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> engine = Engine(bundled_model("squeezenet"))
        >>> [output.shape for output in engine(engine.generate_random_inputs())]
        [(1, 1000, 1, 1)]
        >>> engine.close()
    """

    def __init__(
        self,
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
    ) -> None:
        self._recipe = recipe_of(locals())
        if not isinstance(model, (str, os.PathLike)):
            model = self._recipe["model"]
        libraries = check_custom_ops(custom_ops)
        self._shrinks = check_flag("shrink_memory", shrink_memory)
        deterministic = check_flag("deterministic", deterministic)
        opener = Opener(
            model,
            batch_size,
            input_shapes,
            libraries,
            cache_dir,
            deterministic,
            check_rewrites(rewrites),
            check_batching(batching),
        )
        self._owns_context = context is None
        if context is None:
            asked = Asked(
                num_cores,
                num_streams,
                Scheduler.from_str(Scheduler.default if scheduler is None else scheduler),
                "auto" if pin is None else pin,
                None,
            )
            context = Context._over(share_streams(asked, cores, lease_timeout, is_exclusive=True))
        elif not isinstance(context, Context):
            raise OptionError(f"context must be a Context, got {context!r}")
        elif (num_cores, num_streams, scheduler, pin, cores) != (None,) * 5:
            raise OptionError(
                "num_cores, num_streams, scheduler, pin and cores are the context's; give them to "
                "Context(...) when engines share one"
            )
        self._context = context
        self._shared = shared = context._shared
        if (
            shared.dispatcher.is_forked
        ):  # before anything that a thread of the parent may have locked
            raise ForkError(
                "this context was created before os.fork() and is the parent's; create one here"
            )
        try:
            self._served = shared.open(opener)
            self._born = time.monotonic()
            shared.serve(self._served)
            if self._served.opened.changed_fixed_sizes:
                self._check_override(input_shapes)
            if self._owns_context:  # last: an error is all that its user should read
                log_warnings(shared.layout, num_streams)
            if not deterministic:
                warn_of_varying_bits(self._served.opened, shared.layout)
        except BaseException:
            self._abort_init()
            raise

    def _check_override(self, input_shapes: Shapes | None) -> None:
        try:
            self.run(self.generate_random_inputs())
        except (InputError, InferenceError) as error:
            raise explain_override(error, self.batch_size, input_shapes) from error

    def _abort_init(self) -> None:
        if hasattr(self, "_served"):
            self._served.close()
        if self._owns_context:
            self._context.close()

    # --- The model --------------------------------------------------------------------------

    @property
    def _model(self) -> Model:
        """Its native form where its streams are."""
        return self._served.model

    @property
    def model_path(self) -> str | None:
        """The file that the model came from; None if it was given as bytes or as a ModelProto."""
        return self._served.opened.path

    @property
    def batch_size(self) -> int | None:
        """Batch it was compiled for; None for whatever it takes."""
        return self._served.opened.batch_size

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs that must be given, in the graph's order, in which `run` takes a
        list."""
        return [info.name for info in self._model.inputs]

    @property
    def input_shapes(self) -> list[Shape]:
        """Shape of each input. A dimension is an int, or a symbol's name or None for any size."""
        return [info.shape for info in self._model.inputs]

    @property
    def input_dtypes(self) -> list[np.dtype[Any]]:
        """Dtype of each input; object for strings."""
        return [info.dtype for info in self._model.inputs]

    @property
    def overridable_names(self) -> list[str]:
        """Names of the inputs that may be left out, since the model has a default for them:
        onnxruntime's overridable initializers. They are in none of the lists of inputs. `run` takes
        them by name, or after the others in this order, where None leaves one out."""
        return [info.name for info in self._model.overridable]

    @property
    def overridable_shapes(self) -> list[Shape]:
        """Shape of each of `overridable_names`; dimensions as in `input_shapes`."""
        return [info.shape for info in self._model.overridable]

    @property
    def overridable_dtypes(self) -> list[np.dtype[Any]]:
        """Dtype of each of `overridable_names`; object for strings."""
        return [info.dtype for info in self._model.overridable]

    @property
    def output_names(self) -> list[str]:
        """Output names in the graph's order, the order of what `run` returns."""
        return [info.name for info in self._model.outputs]

    @property
    def output_shapes(self) -> list[Shape]:
        """Shape of each output; dimensions as in `input_shapes`."""
        return [info.shape for info in self._model.outputs]

    @property
    def output_dtypes(self) -> list[np.dtype[Any]]:
        """Dtype of each output; object for strings."""
        return [info.dtype for info in self._model.outputs]

    # --- Its cores --------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """Context whose streams it uses."""
        return self._context

    @property
    def scheduler(self) -> Scheduler:
        """Which requests may run in parallel."""
        return self._context.scheduler

    @property
    def num_cores(self) -> int:
        """Number of physical cores it uses."""
        return self._context.num_cores

    @property
    def num_streams(self) -> int:
        """Number of requests that run in parallel."""
        return self._context.num_streams

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Slices of the machine that requests run on."""
        return self._context.streams

    @property
    def compiled(self) -> Compiled:
        """Whether its sessions share one copy of the weights, and where that is kept; and whether
        requests that wait run together, which may have turned out to be wrong since."""
        compiled = self._served.opened.compiled
        if (failure := self._model.batching_failure) is None:
            return compiled
        return compiled._replace(batching=compiled.batching.turned_off(failure))

    def memory(self) -> Memory:
        """Memory use by weights and activations, from the process's own maps; takes milliseconds.

        Raises:
            ClosedError: it has been closed.
        """
        if self.is_closed:
            raise ClosedError("this engine is closed, and its memory freed")
        placed = self._served.placed
        return memory_usage(placed.opened.sessions, placed.arenas, placed.opened.inodes)

    def trim(self) -> None:
        """Gives back the memory that earlier requests took and that nothing uses now.

        ONNX Runtime keeps what a run took for the next, so one large input leaves its mark for
        good. May be called while requests run; they keep what they use. Outputs that are still
        held keep their memory, too. The next large request takes its memory anew.

        Raises:
            ClosedError, ForkError: see `run`.

        Example:
            >>> import numpy as np
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet"), batch_size=None) as engine:
            ...     outputs = engine.run([np.zeros((1, 3, 224, 224), np.float32)])
            ...     before = engine.memory()
            ...     engine.trim()
            ...     sum(engine.memory().activations) < sum(before.activations)
            True
        """
        self._model.trim()

    def _wants_shrink(self, shrink_memory: bool | None) -> bool:
        if shrink_memory is None:
            return self._shrinks
        return check_flag("shrink_memory", shrink_memory, otherwise="None for the engine's own")

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.model_path or 'model'}: batch_size={self.batch_size}, "
            f"{self.scheduler}, {counted(self.num_cores, 'core')} in "
            f"{counted(self.num_streams, 'stream')}{', closed' if self.is_closed else ''}>"
        )

    # --- Requests ---------------------------------------------------------------------------

    def run(
        self,
        inp: Inputs,
        val_inp: bool = True,
        *,
        timeout: float | None = None,
        priority: int = 0,
        shrink_memory: bool | None = None,
    ) -> list[Any]:
        """Runs one request and returns its outputs; blocks until it ends.

        Args:
            inp: an array for each input in the graph's order, or a mapping by input name; inputs
                with a default may be left out, see `overridable_names`. A C-contiguous array of the
                input's dtype is not copied and must not be changed during the call. Sequences are
                lists, maps are dicts (of Python's numbers or numpy's), an optional may be None.
            timeout: seconds for waiting and running together. A request that expires in the queue
                never runs; a running one is stopped at its next operator.
            priority: 1 goes before 0, and 0 before -1; within one, first come, first served. Of
                16 requests that are begun while all classes wait, one is the oldest of -1 and one
                the oldest of 0, so none starves.
            val_inp: False skips the check of dtype and shape for C-contiguous arrays. A wrong
                dtype then gives wrong numbers instead of an error.
            shrink_memory: True gives back the memory that the run took, before this returns: for a
                rare large input. The next run takes its memory anew. None: as the engine says.

        Returns:
            The graph's outputs in its order: an array that owns its memory, or a list, a dict or
            None where the model says so.

        Raises:
            InputError, InputTypeError: the inputs do not fit the model; names the input.
            InferenceError: a kernel failed.
            DeadlineExceeded: the timeout expired.
            ClosedError, ForkError: the engine is closed, or belongs to a parent process.
        """
        if type(inp) is not list:
            inp = self._in_order(inp)
        return self._served.model.run(
            inp, timeout, priority, val_inp, self._wants_shrink(shrink_memory)
        )

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
        shrink_memory: bool | None = None,
    ) -> RequestFuture:
        """Queues a request and returns its future, a concurrent.futures.Future.

        The future's `cancel()` withdraws the request, or stops it if it runs. Callbacks run in
        the context's own Python thread. The arrays must not be changed until it is done.

        Args:
            inp, timeout, priority, val_inp, shrink_memory: see `run`.
            block: whether to wait for room if the queue is full.

        Raises:
            QueueFull: the queue is full, and `block` is False.
            InputError, InputTypeError: the inputs do not fit; other errors come with the future.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet")) as engine:
            ...     future = engine.submit(engine.generate_random_inputs(), timeout=10)
            ...     [output.shape for output in future.result()]
            [(1, 1000, 1, 1)]
        """
        if type(inp) is not list:
            inp = self._in_order(inp)
        shrinks = self._wants_shrink(shrink_memory)
        return self._shared.resolver.submit(
            self._model, inp, timeout, priority, val_inp, block, shrinks
        )

    def run_async(
        self,
        inp: Inputs,
        val_inp: bool = True,
        *,
        timeout: float | None = None,
        priority: int = 0,
        block: bool = True,
        shrink_memory: bool | None = None,
        times_ns: list[int] | None = None,
    ) -> Coroutine[Any, Any, list[Any]]:
        """`run` for asyncio, to be awaited: it neither blocks the event loop nor starts a thread.

        Cancelling the task withdraws the request, or stops it if it runs. For other arguments and
        errors see `run`; the arrays must not be changed until it is done.

        Args:
            block: whether to wait for room if the queue is full.
            times_ns: a list that gets, once the request is answered, when it was queued and when
                its run began and ended, in ns of `time.monotonic_ns()`.

        Raises:
            QueueFull: the queue is full, and `block` is False.
        """
        # The caller may change its list before the task runs.
        inp = inp.copy() if type(inp) is list else self._in_order(inp)
        shrinks = self._wants_shrink(shrink_memory)
        return run_on_loop(self._model, inp, timeout, priority, val_inp, block, shrinks, times_ns)

    def map(
        self,
        iterable: Iterable[Inputs],
        in_flight: int | None = None,
        ordered: bool = True,
        progress: bool = False,
        *,
        priority: int = 0,
        val_inp: bool = True,
        shrink_memory: bool | None = None,
    ) -> Iterator[list[Any]]:
        """Runs a request for each item and yields its outputs, all from one Python thread.

        Backpressure: items are taken as requests end, so neither items nor results pile up. Closing
        the generator early cancels what is under way.

        Args:
            iterable: inputs as `run` takes them.
            in_flight: number of requests under way; None for as many as keep all streams busy.
            ordered: whether results keep the order of the items, or come as requests end.
            progress: whether to draw a progress bar on stderr.
            priority, val_inp, shrink_memory: see `run`.

        Raises:
            DeepschedError: any error of `run`, in the item's place; later requests are cancelled.

        Example:
            >>> from deepsched.benchmark import bundled_model
            >>> with Engine(bundled_model("squeezenet"), scheduler="multi_stream") as engine:
            ...     items = (engine.generate_random_inputs() for _ in range(4))
            ...     sum(outputs[0].size for outputs in engine.map(items))
            4000
        """
        requests = RequestMap(
            self._model,
            self._in_order,
            in_flight,
            ordered,
            priority,
            val_inp,
            self._wants_shrink(shrink_memory),
        )
        results = requests.run(iterable)
        if not progress:
            return results
        total = len(iterable) if isinstance(iterable, Sized) else None
        return tracked(results, "requests", total)

    def batched_run(
        self,
        inp: Inputs,
        *,
        priority: int = 0,
        val_inp: bool = True,
        shrink_memory: bool | None = None,
    ) -> list[Any]:
        """Splits a large batch along its first dimension and runs the parts on all streams.

        With batch_size=None there is a part for each stream; else parts are of batch_size, which
        must divide the batch.

        Args:
            inp: as for `run`, with a longer first dimension, the same in all inputs; those with a
                default are not split.
            priority, val_inp, shrink_memory: see `run`.

        Returns:
            The outputs, concatenated along their first dimension.

        Raises:
            InputError: the batch cannot be split so, or the parts of an output cannot be joined.
            DeepschedError: any error of `run`.
        """
        parts = split_batch(
            self._in_order(inp), len(self._model.inputs), self.batch_size, self.num_streams
        )
        results = self.map(parts, priority=priority, val_inp=val_inp, shrink_memory=shrink_memory)
        return join_batch(list(results), self.output_names)

    def timed_run(self, inp: Inputs, val_inp: bool = False) -> tuple[list[Any], float]:
        """`run`, and its latency in seconds. Inputs are not checked by default.

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
        """Runs the same inputs repeatedly, one request at a time, and times each.

        `deepsched.benchmark.measure` puts on loads of several callers. For the arguments see
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
        """Runs each of the loader's inputs, one request at a time, and times it.

        Args:
            loader: inputs as for `run`; iterated again when it is exhausted.
            num_iterations: number of requests to time.
            num_warmup_iterations: number of requests to run first, untimed.
            include_inputs, include_outputs: whether to keep these with the results.
            show_progress: whether to draw a progress bar on stderr.

        Raises:
            OptionError: a number is too small, or the loader has no inputs left to iterate.
            DeepschedError: any error of `run`.
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
        """Outcomes and latencies of its requests so far; queue figures are the context's."""
        return self._shared.stats(self._served.counts(), self._born)

    def _in_order(self, inputs: Inputs) -> list[Any]:
        if isinstance(inputs, Mapping):
            overridable = self.overridable_names
            known = [*self.input_names, *overridable]
            unknown = [name for name in inputs if name not in known]
            missing = [
                info.name
                for info in self._model.inputs
                if info.name not in inputs and info.kind != "optional"
            ]
            if unknown or missing:
                wrong = [
                    f"{what} {names}"
                    for what, names in (("missing", missing), ("unknown", unknown))
                    if names
                ]
                expected = f"expected inputs named {self.input_names}"
                if overridable:
                    expected += f", and any of {overridable}"
                raise InputError(f"{expected}; {', '.join(wrong)}")
            has_more = any(name in inputs for name in overridable)
            return [inputs.get(name) for name in (known if has_more else self.input_names)]
        if isinstance(inputs, (list, tuple)):
            return list(inputs)
        raise InputTypeError(
            "expected a list with an array for each input, or a mapping by input name, got "
            f"{type(inputs).__name__}; for a model with one input: run([x])"
        )

    def generate_random_inputs(self) -> list[Any]:
        """Random inputs that fit the model; open sizes are batch_size first, then 1."""
        return random_inputs(self._model.inputs, self.batch_size)

    # --- Its end ----------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called, here or on the context."""
        return self._served.is_closed

    def close(self) -> None:
        """Ends queued requests as closed, waits for running ones, and frees everything.

        Later calls raise ClosedError. May be called again.
        """
        if self._owns_context:
            self._context.close()
        else:
            self._served.close()
        self._recipe.clear()  # the model's bytes

    def __reduce__(self) -> tuple[Any, ...]:
        recipe = self._recipe.copy()  # then look: close() sets the flag first
        if self.is_closed:
            raise ClosedError("this engine is closed; pickle it before, or pickle its model's path")
        return remake, (type(self), Engine, recipe)

    def __enter__(self) -> Engine:
        if self.is_closed:
            raise ClosedError("this engine is closed; compile the model again to use it")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_served"):
            self.close()  # again, too: Ctrl-C may have ended the first early


class MultiModelEngine(Engine):
    """An engine that shares a context's streams with others: DeepSparse's form of it.

    Args:
        model, batch_size, input_shapes, custom_ops, rewrites, batching: see Engine.
        context: the streams to share.
    """

    def __init__(
        self,
        model: ModelLike,
        batch_size: BatchSize,
        context: Context,
        input_shapes: Shapes | None = None,
        *,
        custom_ops: CustomOps = (),
        rewrites: str = "fast",
        batching: BatchingOption = "auto",
    ) -> None:
        super().__init__(
            model,
            batch_size,
            input_shapes=input_shapes,
            context=context,
            custom_ops=custom_ops,
            rewrites=rewrites,
            batching=batching,
        )
