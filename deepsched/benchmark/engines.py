"""The engines to benchmark: deepsched, plain onnxruntime, OpenVINO, or a custom class.

    deepsched                deepsched (deepsparse is an alias, for DeepSparse's scripts)
    onnxruntime              plain onnxruntime: one session on all cores, shared by all callers
    onnxruntime:per_stream   plain onnxruntime: a pool with one session per stream, each with as
                             many threads as the stream has cores
    openvino                 OpenVINO with num_streams streams and a pool of infer requests, in fp32
    module:Class             a custom class from an importable module
    path/to/script.py:Class  a custom class from a file; classes for DeepSparse's benchmark work

A custom class needs

    __init__(self, model_path, batch_size, num_cores, num_streams, input_shapes)
        called with those of these keywords that it accepts; num_cores and num_streams are ints,
        input_shapes may be None
    run(self, inputs)
        answers a request; called from several threads at once; val_inp=False is passed if it
        accepts that

and may have

    generate_random_inputs(self), or inputs = [(name, shape, dtype), ...]
        the argument of `run`; from `inputs`, a list with a random array for each; with neither, the
        same from the inputs that the model's file declares
    close(self)
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from deepsched.benchmark.load import Run
from deepsched.engine import Engine
from deepsched.errors import DeepschedError, OptionError, UnsupportedModelError
from deepsched.machine.partition import Stream, partition
from deepsched.machine.topology import Topology
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batching.option import BatchingOption
from deepsched.models.custom_ops import CustomOps, check_custom_ops
from deepsched.models.prepare import PreparedModel, Shapes, inputs_of, prepare_model
from deepsched.models.random_inputs import random_value
from deepsched.runtime import telemetry
from deepsched.scheduler import Scheduler

ENGINES = (
    "deepsched",
    "onnxruntime",
    "onnxruntime:per_stream",
    "openvino",
    "module:Class",
    "script.py:Class",
)

_OURS = ("deepsched", "deepsparse")  # DeepSparse's scripts pass the second


class EngineOptions(TypedDict, total=False):
    """The options of `open_engine`; `sweep` takes them as well."""

    batch_size: BatchSize
    num_cores: int | None
    num_streams: int | None
    scheduler: str
    input_shapes: Shapes | None
    pin: str
    custom_ops: CustomOps
    rewrites: str
    batching: BatchingOption


class OpenedEngine(Protocol):
    """An engine of `open_engine`; deepsched.Engine is one."""

    @property
    def batch_size(self) -> int | None:
        """Items in a request."""

    @property
    def num_cores(self) -> int | None:
        """Number of physical cores that it was told to use; None: nobody here knows."""

    @property
    def num_streams(self) -> int | None:
        """Number of requests that it was told to run in parallel; None likewise."""

    def run(self, inputs: Any) -> Any:
        """Answers a request; called from several threads at once."""

    def generate_random_inputs(self) -> Any:
        """Inputs for `run`; the same from every engine but a custom class."""

    def close(self) -> None:
        """Frees the engine's memory and threads."""


class EngineSetting(NamedTuple):
    """The configuration that an opened engine runs with, all defaults resolved.

    Public as `deepsched.benchmark.Setting`. `deepsched.advice.Setting` is the other direction: the
    arguments to give to compile_model, in which None stands for a default.
    """

    engine: str
    """Its repr: name, version and configuration."""
    batch_size: int | None
    num_cores: int | None
    """None: it is a server's."""
    num_streams: int | None
    scheduler: Scheduler | None
    """None: the engine is not deepsched's."""
    batching: str | None = None
    """Whether requests that wait run together, in words; None as above."""

    @classmethod
    def of(cls, engine: OpenedEngine) -> EngineSetting:
        """The setting of an opened engine."""
        return cls(
            repr(engine),
            engine.batch_size,
            engine.num_cores,
            engine.num_streams,
            getattr(engine, "scheduler", None),
            str(engine.compiled.batching) if isinstance(engine, Engine) else None,
        )


def open_engine(
    name: str,
    model_path: str,
    *,
    batch_size: BatchSize = AUTO,
    num_cores: int | None = None,
    num_streams: int | None = None,
    scheduler: Scheduler | str = "multi_stream",
    input_shapes: Shapes | None = None,
    pin: str = "auto",
    custom_ops: CustomOps = (),
    rewrites: str = "fast",
    batching: BatchingOption = "auto",
) -> OpenedEngine:
    """Opens a model in one of the engines, all configured for the same cores and streams.

    Args:
        name: "deepsched", "onnxruntime", "onnxruntime:per_stream", "openvino", "module:Class" or
            "path/to/script.py:Class".
        model_path: an ONNX file.
        batch_size, num_cores, num_streams, scheduler, input_shapes: see Engine. Other engines get
            the numbers of cores and streams that deepsched would use.
        pin, rewrites, batching: see Context and Engine; deepsched only.
        custom_ops: see Engine; deepsched and onnxruntime only.

    Raises:
        OptionError: the engine is unknown or not installed, or a custom class fails.
        UnsupportedModelError: the engine cannot open or run this model.
        What Engine raises.

    Example:
        >>> from contextlib import closing
        >>> from deepsched.benchmark import bundled_model
        >>> with closing(open_engine("onnxruntime", bundled_model("squeezenet"))) as engine:
        ...     [output.shape for output in engine.run(engine.generate_random_inputs())]
        [(1, 1000, 1, 1)]
    """
    if name in _OURS:
        return Engine(
            model_path,
            batch_size,
            num_cores,
            num_streams,
            scheduler,
            input_shapes,
            pin=pin,
            custom_ops=custom_ops,
            rewrites=rewrites,
            batching=batching,
        )
    make = _BUILT_IN.get(name)
    if make is None and ":" not in name:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    prepared = prepare_model(model_path, batch_size, input_shapes)
    if Scheduler.from_str(scheduler) == Scheduler.single_stream:
        num_streams = 1
    streams, _ = partition(Topology.detect(), num_cores, num_streams)
    plan = _Plan(
        model_path,
        prepared,
        prepared.batch_size or 1,
        streams,
        input_shapes,
        check_custom_ops(custom_ops),
    )
    engine: OpenedEngine = make(plan) if make is not None else _CustomEngine(name, plan)
    try:  # a trial run, so that a model that the engine cannot run fails before the measurement
        engine.run(engine.generate_random_inputs())
    except BaseException as error:
        engine.close()
        if isinstance(error, DeepschedError) or not isinstance(error, Exception):
            raise
        raise UnsupportedModelError(
            f"{name} does not run {model_path!r} with batch_size={batch_size}, "
            f"input_shapes={input_shapes}: {type(error).__name__}: {error}"
        ) from error
    return engine


class _Plan(NamedTuple):
    """The configuration for an engine that is not deepsched's."""

    path: str
    prepared: PreparedModel
    batch_size: int
    streams: Sequence[Stream]
    input_shapes: Shapes | None
    custom_ops: tuple[str, ...]

    @property
    def num_cores(self) -> int:
        return sum(len(stream.cores) for stream in self.streams)


class _OtherEngine:
    """Base of the engines that are not deepsched's."""

    def __init__(self, plan: _Plan, text: str) -> None:
        self.batch_size = plan.batch_size
        self.num_cores = plan.num_cores
        self.num_streams = len(plan.streams)
        self.inputs: list[Any] = []
        """The inputs, each as `random_value` takes it."""
        self._text = f"{text}, batch_size={plan.batch_size}, {plan.num_cores} cores"

    def generate_random_inputs(self) -> list[Any]:
        """The same as Engine's."""
        rng = np.random.default_rng(0)
        return [random_value(rng, info, self.batch_size) for info in self.inputs]

    def close(self) -> None:
        """Garbage collection frees the engine."""

    def __repr__(self) -> str:
        return f"<{self._text}>"


class _OnnxRuntime(_OtherEngine):
    """Plain onnxruntime, one session."""

    def __init__(self, plan: _Plan) -> None:
        self._ort: Any = _import("onnxruntime", "deepsched")
        super().__init__(plan, f"onnxruntime {self._ort.__version__}, one session")
        session = self._open(plan, plan.num_cores)
        self._run = session.run
        self._describe(session)

    def _open(self, plan: _Plan, num_threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4  # fatal only: errors are raised as exceptions
        for key, value in plan.prepared.config.items():
            options.add_session_config_entry(key, value)
        try:
            for path in plan.custom_ops:
                options.register_custom_ops_library(path)
            return self._ort.InferenceSession(
                plan.prepared.source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"onnxruntime cannot open {plan.path!r}: {error}"
            ) from error

    def _describe(self, session: Any) -> None:
        self._names = [value.name for value in session.get_inputs()]
        self.inputs = [
            _tensor(value.name, value.shape, _ORT_DTYPES.get(value.type, value.type))
            for value in session.get_inputs()
        ]

    def run(self, inputs: list[Any]) -> Any:
        return self._run(None, dict(zip(self._names, inputs, strict=True)))


class _OnnxRuntimePerStream(_OnnxRuntime):
    """Plain onnxruntime, a pool of sessions."""

    def __init__(self, plan: _Plan) -> None:
        self._ort = _import("onnxruntime", "deepsched")
        text = f"onnxruntime {self._ort.__version__}, {len(plan.streams)} sessions"
        _OtherEngine.__init__(self, plan, text)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for stream in plan.streams:
            session = self._open(plan, len(stream.cores))
            self._idle.put(session)
        self._describe(session)

    def run(self, inputs: list[Any]) -> Any:
        session = self._idle.get()
        try:
            return session.run(None, dict(zip(self._names, inputs, strict=True)))
        finally:
            self._idle.put(session)


class _OpenVino(_OtherEngine):
    """OpenVINO, a pool of as many infer requests as it calls optimal, at least one per stream."""

    def __init__(self, plan: _Plan) -> None:
        openvino = _import("openvino", "peers")
        super().__init__(plan, f"OpenVINO {openvino.__version__}, {len(plan.streams)} streams")
        source = plan.prepared.source
        options = {
            "NUM_STREAMS": len(plan.streams),
            "INFERENCE_NUM_THREADS": plan.num_cores,
            # By default it computes in bfloat16 where the CPU supports it: less work than ours.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            model = core.read_model(io.BytesIO(source) if isinstance(source, bytes) else source)
            compiled = core.compile_model(model, "CPU", options)
            best = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        except Exception as error:
            raise UnsupportedModelError(f"OpenVINO cannot open {plan.path!r}: {error}") from error
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(max(len(plan.streams), best)):
            self._idle.put(compiled.create_infer_request())
        self.inputs = [
            _tensor(
                port.any_name,
                [d.get_length() if d.is_static else None for d in port.partial_shape],
                port.element_type.to_dtype(),
            )
            for port in compiled.inputs
        ]

    def run(self, inputs: list[Any]) -> Any:
        request = self._idle.get()
        try:
            # Inputs are shared, as by the other engines. Outputs are copied, since the next use
            # of the infer request overwrites its own.
            results = request.infer(dict(enumerate(inputs)), share_inputs=True)
            return list(results.values())
        finally:
            self._idle.put(request)


class _CustomEngine(_OtherEngine):
    """A custom class."""

    def __init__(self, name: str, plan: _Plan) -> None:
        super().__init__(plan, name)
        make = _find_class(name)
        options = _accepted(
            make,
            model_path=plan.path,
            batch_size=plan.batch_size,
            num_cores=plan.num_cores,
            num_streams=len(plan.streams),
            input_shapes=plan.input_shapes,
        )
        try:
            self._engine = make(**options)
        except DeepschedError:
            raise
        except Exception as error:
            raise OptionError(
                f"engine {name!r}: its constructor, called with {', '.join(options)}, raised "
                f"{type(error).__name__}: {error}"
            ) from error
        self._name = name
        run = getattr(self._engine, "run", None)
        if run is None:
            raise OptionError(f"engine {name!r} needs run; see deepsched.benchmark.engines")
        # DeepSparse's classes validate the inputs of every run unless val_inp=False.
        self._run: Run = functools.partial(run, **_accepted(run, by_name=True, val_inp=False))
        if not hasattr(self._engine, "generate_random_inputs"):
            described = getattr(self._engine, "inputs", None)
            if described is None:
                described = inputs_of(plan.prepared)
            self.inputs = [_tensor(*each) for each in described]

    def run(self, inputs: Any) -> Any:
        try:
            return self._run(inputs)
        except DeepschedError:
            raise
        except Exception as error:
            raise OptionError(
                f"engine {self._name!r}: run raised {type(error).__name__}: {error}"
            ) from error

    def generate_random_inputs(self) -> Any:
        if hasattr(self._engine, "generate_random_inputs"):
            return self._engine.generate_random_inputs()
        return super().generate_random_inputs()

    def close(self) -> None:
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()

    def __repr__(self) -> str:
        return f"<{self._text}: {self._engine!r}>"


def _accepted(
    function: Callable[..., Any], by_name: bool = False, **options: Any
) -> dict[str, Any]:
    """The options that a function accepts. `by_name`: as parameters, not through **kwargs."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature, as of functions written in C
        return {} if by_name else options
    if not by_name and any(it.kind == it.VAR_KEYWORD for it in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _find_class(name: str) -> Callable[..., Any]:
    module_name, _, class_name = name.rpartition(":")
    is_file = module_name.endswith(".py") or os.sep in module_name
    try:
        module = _load_file(module_name) if is_file else importlib.import_module(module_name)
    except DeepschedError:
        raise
    except Exception as error:  # a module's code may raise anything
        hint = "" if is_file else "; it must be in the working folder, in PYTHONPATH or installed"
        reason = f"{type(error).__name__}: {error}"
        raise OptionError(
            f"engine {name!r}: cannot import {module_name!r} ({reason}){hint}"
        ) from error
    found: Any = getattr(module, class_name, None)
    if not callable(found):
        raise OptionError(f"engine {name!r}: the module has no class {class_name!r}")
    return found  # type: ignore[no-any-return]


def _load_file(path: str) -> ModuleType:
    """Loads a module from a file; only once, since a sweep opens many engines."""
    if not os.path.isfile(path):
        raise OptionError(f"no file {path!r} to load an engine from")
    name = f"deepsched engines of {os.path.realpath(path)}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise OptionError(f"{path!r} is not a Python file to load an engine from")
        # In sys.modules before it runs, as by an import: pickle and dataclasses look there.
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _tensor(name: str, shape: Sequence[Any], dtype: Any) -> Any:
    """An input as `random_value` takes it."""
    try:
        return SimpleNamespace(name=name, kind="tensor", shape=tuple(shape), dtype=np.dtype(dtype))
    except TypeError:
        raise OptionError(
            f"input {name!r} is {dtype}; random inputs are only made for tensors of numpy's types"
        ) from None


def _import(module: str, extra: str) -> Any:
    telemetry.switch_off()  # onnxruntime's package starts a copy of its own as it is imported
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = "pip install " + (extra if extra == "deepsched" else f"'deepsched[{extra}]'")
        raise OptionError(f"engine {module!r} cannot be imported ({error}); {install}") from error


_ORT_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(string)": np.object_,
    **{
        f"tensor({name})": np.dtype(name)
        for name in (
            "float16",
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
        )
    },
}

_BUILT_IN: dict[str, Callable[[_Plan], OpenedEngine]] = {
    "onnxruntime": _OnnxRuntime,
    "onnxruntime:per_stream": _OnnxRuntimePerStream,
    "openvino": _OpenVino,
}
