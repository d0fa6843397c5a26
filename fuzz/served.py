"""The server's inferences without a server: small models behind its codecs."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import DeepschedError
from deepsched.server.errors import ModelNotFound, answer_of
from deepsched.server.inference import Inference
from deepsched.server.model_version import ModelVersion
from deepsched.server.shared_memory import Regions
from tests.support import models

TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "INT8": TensorProto.INT8,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT64": TensorProto.UINT64,
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
}
"""Each has a model of its name, y = x. Beside them there is `two`, with inputs a and b."""

MODELS = (*TYPES, "two")

_REFUSED = {400, 404, 413, 504}
"""What a client can cause by what it sends: the last by the timeout that it asks for."""


class _Models:
    """Where the server has its repository."""

    def __init__(self) -> None:
        self._context = Context(num_cores=1, num_streams=1, pin="none", cores="share")
        made = {
            name: models.identity(("n",), number, opset=21, ir_version=10)
            for name, number in TYPES.items()
        }
        made["two"] = models.make(
            [
                helper.make_node("Gather", ["a", "b"], ["row"]),
                helper.make_node("Identity", ["b"], ["same"]),
            ],
            [models.tensor("a", ["n", 4]), models.tensor("b", ["k"], TensorProto.INT64)],
            [models.tensor("row", ["k", 4]), models.tensor("same", ["k"], TensorProto.INT64)],
        )
        self._versions = {
            name: ModelVersion(name, "1", self._open(model)) for name, model in made.items()
        }

    def _open(self, model: Any) -> Engine:
        return Engine(
            model, None, context=self._context, cache_dir=None, rewrites="none", batching="off"
        )

    def get(self, name: str, version: str = "") -> ModelVersion:
        if name not in self._versions or version not in ("", "1"):
            raise ModelNotFound(f"no model {name!r:.80}")
        return self._versions[name]


@functools.cache
def inference() -> Inference:
    """Of `MODELS`, with no region of shared memory."""
    return Inference(_Models(), Regions(Path(tempfile.gettempdir())))  # type: ignore[arg-type]


_loop = functools.cache(asyncio.new_event_loop)


def answered(work: Coroutine[Any, Any, Any]) -> Any:
    """What a request is answered with; None if it is refused as one of a client's errors is."""
    try:
        return _loop().run_until_complete(work)
    except DeepschedError as error:
        answer = answer_of(error)
        assert answer.http_status in _REFUSED, answer
        assert 0 < len(answer.message) < 10_000, len(answer.message)
        return None
