"""The engines that a load can be put on: deepsched's, plain onnxruntime, OpenVINO, a user's class.

    deepsched                deepsched (DeepSparse's word, deepsparse, is taken too)
    onnxruntime              plain onnxruntime, one session on all cores that every caller calls
    onnxruntime:per_stream   one session for each stream, with that stream's number of threads; a
                             caller takes one that is idle, or waits for one
    openvino                 OpenVINO with num_streams streams, by a pool of infer requests, in fp32
    module:Class             a class of yours, found as Python's import does
    path/to/script.py:Class  the same, from a file; classes written for DeepSparse's benchmark work

A class of yours needs

    __init__(self, model_path, batch_size, num_cores, num_streams, input_shapes)
        called with keywords, those of these that it takes; num_cores and num_streams are ints,
        input_shapes may be None
    run(self, inputs)
        answers a request; called from several threads at once; one that takes val_inp gets False

and may have

    generate_random_inputs(self), or inputs = [(name, shape, dtype), ...]
        what `run` is given; from the second, a list with a random array for each; with neither,
        the same made of what the model's file says of its inputs
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
from deepsched.models.prepare import PreparedModel, Shapes, inputs_of, prepare_model
from deepsched.models.random_inputs import random_value
from deepsched.scheduler import Scheduler

ENGINES = (
    "deepsched",
    "onnxruntime",
    "onnxruntime:per_stream",
    "openvino",
    "module:Class",
    "script.py:Class",
)

_OURS = ("deepsched", "deepsparse")


class EngineOptions(TypedDict, total=False):
    """The options of `open_engine`; `sweep` takes them."""

    batch_size: int
    num_cores: int | None
    num_streams: int | None
    scheduler: str
    input_shapes: Shapes | None
    pin: str


class OpenedEngine(Protocol):
    """What `open_engine` returns, an Engine among others."""

    @property
    def batch_size(self) -> int | None:
        """Items in a request."""

    @property
    def num_cores(self) -> int:
        """How many physical cores it was told to use."""

    @property
    def num_streams(self) -> int:
        """How many requests it was told to run side by side."""

    def run(self, inputs: Any) -> Any:
        """Answers a request; from any number of threads at once."""

    def generate_random_inputs(self) -> Any:
        """What `run` takes; the same from every engine, but a class of the user's."""

    def close(self) -> None:
        """Frees it."""


def open_engine(
    name: str,
    model_path: str,
    *,
    batch_size: int = 1,
    num_cores: int | None = None,
    num_streams: int | None = None,
    scheduler: Scheduler | str = "multi_stream",
    input_shapes: Shapes | None = None,
    pin: str = "core",
) -> OpenedEngine:
    """Opens a model in one of the engines, told to use the same cores and streams.

    Args:
        name: "deepsched", "onnxruntime", "onnxruntime:per_stream", "openvino", "module:Class" or
            "path/to/script.py:Class".
        model_path: an ONNX file.
        batch_size, num_cores, num_streams, scheduler, input_shapes: see Engine. Other engines are
            told the numbers of cores and streams that deepsched would use.
        pin: see Context; for deepsched alone.

    Raises:
        OptionError: no such engine, or it is not installed, or a class of the user's fails.
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
            model_path, batch_size, num_cores, num_streams, scheduler, input_shapes, pin=pin
        )
    make = _BUILT_IN.get(name)
    if make is None and ":" not in name:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    prepared = prepare_model(model_path, batch_size, input_shapes)
    if Scheduler.from_str(scheduler) == Scheduler.single_stream:
        num_streams = 1
    streams, _ = partition(Topology.detect(), num_cores, num_streams)
    plan = _Plan(model_path, prepared, prepared.batch_size or 1, streams, input_shapes)
    engine: OpenedEngine = make(plan) if make is not None else _UserEngine(name, plan)
    try:  # whether it works is known before it is measured
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
    """What an engine is told."""

    path: str
    prepared: PreparedModel
    batch_size: int
    streams: Sequence[Stream]
    input_shapes: Shapes | None

    @property
    def num_cores(self) -> int:
        return sum(len(stream.cores) for stream in self.streams)


class _Described:
    """What all of these say of themselves."""

    def __init__(self, plan: _Plan, text: str) -> None:
        self.batch_size = plan.batch_size
        self.num_cores = plan.num_cores
        self.num_streams = len(plan.streams)
        self.inputs: list[Any] = []
        """Of each: what `random_value` takes."""
        self._text = f"{text}, batch_size={plan.batch_size}, {plan.num_cores} cores"

    def generate_random_inputs(self) -> list[Any]:
        """The same as Engine's."""
        rng = np.random.default_rng(0)
        return [random_value(rng, info, self.batch_size) for info in self.inputs]

    def close(self) -> None:
        """Nothing to free but what goes with the object."""

    def __repr__(self) -> str:
        return f"<{self._text}>"


class _OnnxRuntime(_Described):
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
        options.log_severity_level = 4  # what goes wrong is raised
        for key, value in plan.prepared.config.items():
            options.add_session_config_entry(key, value)
        try:
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
        _Described.__init__(self, plan, text)
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


class _OpenVino(_Described):
    """OpenVINO, a pool of infer requests: as many as it says are best, one a stream at least."""

    def __init__(self, plan: _Plan) -> None:
        openvino = _import("openvino", "peers")
        super().__init__(plan, f"OpenVINO {openvino.__version__}, {len(plan.streams)} streams")
        source = plan.prepared.source
        options = {
            "NUM_STREAMS": len(plan.streams),
            "INFERENCE_NUM_THREADS": plan.num_cores,
            # By default it computes in bfloat16 where the CPU can, which is other work.
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
            # Inputs are not copied, as nowhere else; outputs are, since the request's are used
            # again.
            results = request.infer(dict(enumerate(inputs)), share_inputs=True)
            return list(results.values())
        finally:
            self._idle.put(request)


class _UserEngine(_Described):
    """A class of the user's."""

    def __init__(self, name: str, plan: _Plan) -> None:
        super().__init__(plan, name)
        make = _find_class(name)
        options = _taken_by(
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
        # DeepSparse's engines are told not to look at the inputs each time.
        self._run: Run = functools.partial(run, **_taken_by(run, by_name=True, val_inp=False))
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


def _taken_by(make: Callable[..., Any], by_name: bool = False, **options: Any) -> dict[str, Any]:
    """Those of the options that it takes; `by_name`: that it has a parameter for."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # written in C, say
        return {} if by_name else options
    if not by_name and any(it.kind == it.VAR_KEYWORD for it in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _find_class(name: str) -> Callable[..., Any]:
    module_name, _, class_name = name.rpartition(":")
    is_file = module_name.endswith(".py") or os.sep in module_name
    try:
        module = _load(module_name) if is_file else importlib.import_module(module_name)
    except DeepschedError:
        raise
    except Exception as error:  # whatever the lines of a module raise
        where = (
            ""
            if is_file
            else (
                "; it must be importable from here: in the working folder, in PYTHONPATH or "
                "installed"
            )
        )
        raise OptionError(
            f"engine {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error})"
            f"{where}"
        ) from error
    found: Any = getattr(module, class_name, None)
    if not callable(found):
        raise OptionError(f"engine {name!r}: the module has no class {class_name!r}")
    return found  # type: ignore[no-any-return]


def _load(path: str) -> ModuleType:
    """A module from a file, once for a sweep of many engines."""
    if not os.path.isfile(path):
        raise OptionError(f"no file {path!r} to take an engine from")
    name = f"deepsched engines of {os.path.realpath(path)}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise OptionError(f"{path!r} is no Python file to take an engine from")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # as an import does
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _tensor(name: str, shape: Sequence[Any], dtype: Any) -> Any:
    """What `random_value` takes."""
    try:
        return SimpleNamespace(name=name, kind="tensor", shape=tuple(shape), dtype=np.dtype(dtype))
    except TypeError:
        raise OptionError(
            f"input {name!r} is {dtype}; random inputs can be made up for tensors of numpy's types"
        ) from None


def _import(module: str, extra: str) -> Any:
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
