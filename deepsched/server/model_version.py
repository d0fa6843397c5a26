"""A model under a name and a version: its engine, and what the protocol says of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from deepsched.engine import Engine
from deepsched.errors import InputError, UnsupportedModelError
from deepsched.scheduling.stats import Counts, Latency
from deepsched.server.datatypes import config_type_of, datatype_of
from deepsched.server.request_limits import RequestLimits
from deepsched.server.tensors import TensorSpec

logger = logging.getLogger("deepsched.server")

PLATFORM = "onnxruntime_onnx"

MOST_BATCH = 4096
"""What a configuration says of a model that takes any batch: the protocol has no word for that."""


class ModelVersion:
    """An engine that serves under `name` and `version`.

    Requests are counted in and out on the event loop's thread, so that `retire` can tell when the
    last one has its answer.

    Args:
        name, version: as clients call it.
        engine: open; closed by whoever opened it.
        max_batch_size: the longest first dimension that a request may have; 0 where the model has
            no batch dimension of its own. None: as the engine takes it.
        labels: by output's name, what its elements stand for.
        limits: time and urgency of its requests.
        config: fields of the configuration that are to be shown beside those that follow from the
            model.

    Raises:
        UnsupportedModelError: an input that is no tensor, or a type that the protocol has no name
            for.
    """

    def __init__(
        self,
        name: str,
        version: str,
        engine: Engine,
        *,
        max_batch_size: int | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        limits: RequestLimits = RequestLimits(),  # noqa: B008
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.engine = engine
        self.labels = dict(labels or {})
        self.limits = limits
        model = engine._served.model
        self.inputs = {
            spec.name: spec
            for spec in (
                *_specs("input", model.inputs, 0),
                *_specs("input", model.overridable, len(model.inputs)),
            )
        }
        self.num_inputs = len(model.inputs)
        """Of them, those that have no default; they come first."""
        self.outputs = {
            spec.name: spec
            for position, info in enumerate(model.outputs)
            if _is_tensor(name, info)
            for spec in _specs("output", [info], position)
        }
        self._limits_batch = bool(max_batch_size)
        self.max_batch_size = (
            max_batch_size if max_batch_size is not None else self._default_max_batch_size()
        )
        self._config = dict(config or {})
        self.forms: dict[Any, Any] = {}
        """What a codec has read in requests before, by their bytes."""
        self.num_under_way = 0
        self.num_invalid = 0
        """Requests that never reached the engine, since they do not fit the model."""
        self.last_inference_ms = 0
        """Since 1970; 0: none yet."""
        self._on_drained: Callable[[], None] | None = None

    def _default_max_batch_size(self) -> int:
        engine = self.engine
        firsts = {shape[:1] for shape in (*engine.input_shapes, *engine.output_shapes)}
        is_symbol = len(firsts) == 1 and isinstance(next(iter(firsts), (0,))[0], str)
        return MOST_BATCH if is_symbol else 0

    # --- Requests under way -----------------------------------------------------------------

    def enter(self) -> None:
        """Counts a request in."""
        self.num_under_way += 1

    def leave(self) -> None:
        """Counts a request out."""
        self.num_under_way -= 1
        if not self.num_under_way and self._on_drained is not None:
            self._drained()

    def retire(self, on_drained: Callable[[], None]) -> None:
        """Calls `on_drained`, once, when no request is under way: now, or from the last `leave`.

        Nobody may be given this version any more.
        """
        self._on_drained = on_drained
        if not self.num_under_way:
            self._drained()

    def _drained(self) -> None:
        on_drained, self._on_drained = self._on_drained, None
        if on_drained is not None:
            on_drained()

    # --- What is asked of a request ---------------------------------------------------------

    def input(self, name: str, given: Container[str]) -> TensorSpec:
        """The input `name` of a request that has `given` others before it.

        Raises:
            InputError: there is none, or it is given twice.
        """
        spec = self.inputs.get(name)
        if spec is None:
            raise InputError(
                f"model {self.name!r} has no input {name!r:.80}; it has {list(self.inputs)}"
            )
        if name in given:
            raise InputError(f"input {name!r} is given twice")
        return spec

    def output(self, name: str) -> TensorSpec:
        """The output `name`.

        Raises:
            InputError: there is none.
        """
        spec = self.outputs.get(name)
        if spec is None:
            raise InputError(
                f"model {self.name!r} has no output {name!r:.80}; it has {list(self.outputs)}"
            )
        return spec

    def in_order(self, named: Mapping[str, Any]) -> list[Any]:
        """Inputs by name, as the engine takes them.

        Raises:
            InputError: one is missing, or a batch is longer than the configuration allows. Unknown
                ones have been refused before.
        """
        if self._limits_batch:
            self._check_batch(named)
        inputs: list[Any] = [None] * self.num_inputs
        for name, value in named.items():
            position = self.inputs[name].position
            if position >= len(inputs):
                inputs += [None] * (position + 1 - len(inputs))
            inputs[position] = value
        if len(named) < len(self.inputs):
            self._check_missing(named)
        return inputs

    def _check_batch(self, named: Mapping[str, Any]) -> None:
        for name, value in named.items():
            if not value.ndim or value.shape[0] > self.max_batch_size:
                raise InputError(
                    f"input {name!r}: expected a first dimension of {self.max_batch_size} at most, "
                    f"the model's max_batch_size, got the shape {list(value.shape)}"
                )

    def _check_missing(self, named: Mapping[str, Any]) -> None:
        missing = [
            spec.name
            for spec in self.inputs.values()
            if not spec.is_optional and spec.name not in named
        ]
        if missing:
            raise InputError(
                f"model {self.name!r} expects inputs named "
                f"{[spec.name for spec in self.inputs.values()]}; missing {missing}"
            )

    # --- What has been counted --------------------------------------------------------------

    @property
    def number(self) -> int:
        """What traces of its context call its engine."""
        return self.engine._served.model.number

    def counts(self) -> Counts:
        """What the engine has counted so far; final once that is closed."""
        return self.engine._served.counts()

    # --- What is said of it -----------------------------------------------------------------

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The protocol's model metadata."""
        return {
            "name": self.name,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in self.inputs.values()],
            "outputs": [_described(spec) for spec in self.outputs.values()],
        }

    def config(self) -> dict[str, Any]:
        """The model's configuration, in Triton's fields."""
        skip = 1 if self.max_batch_size else 0
        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "max_batch_size": self.max_batch_size,
            "input": [
                {**_configured(spec, skip), "optional": spec.is_optional}
                for spec in self.inputs.values()
            ],
            "output": [_configured(spec, skip) for spec in self.outputs.values()],
            "instance_group": [
                {"name": self.name, "kind": "KIND_CPU", "count": self.engine.num_streams}
            ],
            "default_model_filename": "model.onnx",
            **self._config,
        }

    def statistics(self) -> dict[str, Any]:
        """The protocol's statistics: counts, and times in ns, since it was opened."""
        stats = self.engine.stats()
        num_unanswered = stats.failed + stats.expired + stats.cancelled + stats.rejected
        waiting, running = _duration(stats.waiting), _duration(stats.running)
        return {
            "name": self.name,
            "version": self.version,
            "last_inference": self.last_inference_ms,
            "inference_count": stats.done,
            "execution_count": sum(stats.by_batch.values()),
            "inference_stats": {
                "success": {"count": stats.done, "ns": waiting["ns"] + running["ns"]},
                "fail": {"count": num_unanswered + self.num_invalid, "ns": 0},
                "queue": waiting,
                "compute_input": {"count": stats.done, "ns": 0},
                "compute_infer": running,
                "compute_output": {"count": stats.done, "ns": 0},
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            # By the number of requests that ran together. Times are not kept by it.
            "batch_stats": [
                {"batch_size": size, **dict.fromkeys(_STEPS, {"count": count, "ns": 0})}
                for size, count in sorted(stats.by_batch.items())
                if count
            ],
        }

    def note_answer(self) -> None:
        """Takes note of when a request was answered."""
        self.last_inference_ms = time.time_ns() // 1_000_000


_STEPS = "compute_input", "compute_infer", "compute_output"


def _is_tensor(name: str, output: Any) -> bool:
    if output.kind != "tensor":
        logger.warning(
            "output %r of model %r is left out of answers: it is a %s, and the inference protocol "
            "knows tensors only",
            output.name,
            name,
            output.kind,
        )
    return bool(output.kind == "tensor")


def _specs(what: str, infos: Iterable[Any], start: int) -> list[TensorSpec]:
    specs = []
    for position, info in enumerate(infos, start):
        is_optional = info.kind == "optional" or info.has_default
        content = info.content if info.kind == "optional" else info
        if content.kind != "tensor":
            raise UnsupportedModelError(
                f"{what} {info.name!r} is a {content.kind}; the inference protocol knows tensors "
                "only"
            )
        datatype = datatype_of(content.dtype, f"{what} {info.name!r}")
        shape = tuple(size if isinstance(size, int) else -1 for size in content.shape)
        specs.append(TensorSpec(info.name, datatype, content.dtype, shape, position, is_optional))
    return specs


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec, skip: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": spec.name,
        "data_type": config_type_of(spec.datatype),
        "dims": list(spec.shape[skip:]),
    }
    if not fields["dims"]:  # which the configuration has no word for, but this
        fields |= {"dims": [1], "reshape": {"shape": []}}
    return fields


def _duration(latency: Latency) -> dict[str, int]:
    return {"count": latency.count, "ns": round(latency.mean * latency.count * 1e9)}
