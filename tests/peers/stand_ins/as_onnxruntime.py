"""A plugin of pytest: onnxruntime.InferenceSession runs on deepsched, as far as runs are concerned.

A test that asks for more of a session or of its options is skipped, and says what it asks for.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from deepsched import Engine

_UNUSED = frozenset(
    (
        "execution_mode",
        "graph_optimization_level",
        "intra_op_num_threads",
        "inter_op_num_threads",
        "log_severity_level",
        "log_verbosity_level",
        "logid",
    )
)
"""Options that change no answer."""

_Plain = onnxruntime.InferenceSession


class Options:
    """SessionOptions that does nothing."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _UNUSED:
            pytest.skip(f"not of runs: SessionOptions.{name}")
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"not of runs: SessionOptions.{name}")


class Session:
    """InferenceSession."""

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        **others: Any,
    ) -> None:
        others.pop("read_config_from_model", None)
        if others:
            pytest.skip(f"not of runs: InferenceSession({', '.join(others)}=)")
        self._engine = Engine(path_or_bytes, None, num_cores=1, cache_dir=None)
        self._plain = _Plain(path_or_bytes)

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"not of runs: InferenceSession.{name}")

    def get_inputs(self) -> list[Any]:
        engine = self._engine
        return self._nodes(engine.input_names, engine.input_shapes, self._plain.get_inputs())

    def get_outputs(self) -> list[Any]:
        engine = self._engine
        return self._nodes(engine.output_names, engine.output_shapes, self._plain.get_outputs())

    def _nodes(self, names: list[str], shapes: list[Any], plain: list[Any]) -> list[Any]:
        """Names and shapes are ours; types, as onnxruntime writes them, its own."""
        types = {node.name: node.type for node in plain}
        return [
            SimpleNamespace(name=name, shape=list(shape or ()), type=types[name])
            for name, shape in zip(names, shapes, strict=True)
        ]

    def run(self, names: Any, feeds: dict[str, Any], run_options: Any = None) -> list[Any]:
        outputs = self._engine.mapped_run(feeds)
        return [outputs[name] for name in names or self._engine.output_names]

    def run_async(
        self, names: Any, feeds: dict[str, Any], callback: Any, user_data: Any, options: Any = None
    ) -> None:
        def tell(future: Any) -> None:
            error = future.exception()
            outputs = [] if error else future.result()
            callback(outputs, user_data, "" if error is None else str(error))

        self._engine.submit(feeds).add_done_callback(tell)


onnxruntime.InferenceSession = Session  # type: ignore[misc]
onnxruntime.SessionOptions = Options  # type: ignore[misc]
