"""Engines of a random model: how it is given, and which options they have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from hypothesis import strategies as st

SCHEDULERS = {
    "one core": ("single_stream", 1),
    "two cores": ("single_stream", 2),
    "two streams": ("multi_stream", 2),
    "elastic": ("elastic", 2),
}
"""Scheduler and number of cores of each context."""


@dataclass(frozen=True)
class Setting:
    where: str
    batch_size: Any
    rewrites: str
    batching: Any
    given_as: str
    is_kept: bool
    """Whether the compiled form goes to the cache."""
    deterministic: bool
    shrink_memory: bool

    @property
    def options(self) -> dict[str, Any]:
        return {
            "rewrites": self.rewrites,
            "batching": self.batching,
            "deterministic": self.deterministic,
            "shrink_memory": self.shrink_memory,
        }

    @property
    def keeps_bits_of_batches(self) -> bool:
        """Whether requests run together only where not a bit moved when that was tried."""
        return self.batching == "auto" and (self.rewrites != "fast" or self.deterministic)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of threads that a request may run on."""
        if self.where == "elastic" and not self.deterministic:
            return (1, 2)
        return (2,) if self.where == "two cores" else (1,)


settings_of_engines = st.builds(
    Setting,
    where=st.sampled_from(tuple(SCHEDULERS)),
    batch_size=st.sampled_from(("auto", None, 1, 3)),
    rewrites=st.sampled_from(("exact", "none", "fast")),
    batching=st.sampled_from(("off", "off", "off", 4, "auto")),
    given_as=st.sampled_from(("path", "bytes", "ModelProto", "external data")),
    is_kept=st.booleans(),
    deterministic=st.booleans(),
    shrink_memory=st.booleans(),
)


@contextmanager
def given(proto: onnx.ModelProto, how: str) -> Iterator[Any]:
    """The model as Engine takes it."""
    if how == "bytes":
        yield proto.SerializeToString()
    elif how == "ModelProto":
        yield proto
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            onnx.save_model(
                copy,
                path,
                save_as_external_data=how == "external data",
                location="weights",
                size_threshold=100,  # shapes must stay in the graph
            )
            yield str(path)
