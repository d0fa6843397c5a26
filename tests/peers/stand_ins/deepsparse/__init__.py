"""DeepSparse's names on deepsched, with the changes that docs/from-deepsparse.md asks for, and no
others: files for stubs, None for num_streams=0."""

from __future__ import annotations

from typing import Any

from sparsezoo import Model

import deepsched
from deepsched import Scheduler

__all__ = ["Context", "Engine", "MultiModelEngine", "Scheduler", "model_debug_analysis"]


def path_of(model: Any) -> Any:
    """The file of a stub, or of sparsezoo's Model."""
    is_stub = isinstance(model, Model) or (isinstance(model, str) and model.startswith("zoo:"))
    return Model(model).path if is_stub else model


class Context(deepsched.Context):
    def __init__(self, num_cores: int | None = None, num_streams: int | None = None) -> None:
        super().__init__(num_cores or None, num_streams or None, "elastic")


class Engine(deepsched.Engine):
    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        super().__init__(path_of(model), *args, **options)


class MultiModelEngine(deepsched.MultiModelEngine):
    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        super().__init__(path_of(model), *args, **options)


def model_debug_analysis(model: Any, *args: Any, **options: Any) -> dict[str, Any]:
    return deepsched.model_debug_analysis(path_of(model), *args, **options)
