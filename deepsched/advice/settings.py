"""What is recommended, and the figures behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deepsched.models.prepare import Shapes


@dataclass(frozen=True)
class Setting:
    """What to give to `compile_model`."""

    scheduler: str
    num_streams: int | None
    num_cores: int | None

    def __str__(self) -> str:
        parts = [f'scheduler="{self.scheduler}"']
        if self.num_streams is not None:
            parts.append(f"num_streams={self.num_streams}")
        if self.num_cores is not None:
            parts.append(f"num_cores={self.num_cores}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Figures:
    """What a setting reached under the load."""

    setting: Setting
    num_streams: int
    """How many streams that makes here; elastic joins them as the load allows."""
    items_per_sec: float
    """Requests a second times batch size."""
    mean_ms: float
    p50_ms: float
    p99_ms: float
    answered: float
    """The share of the requests due that were answered: 1.0, but for a rate that is too high."""
    keeps_up: bool
    """Whether what was due was answered as fast as it fell due; see Measurement.keeps_up."""


@dataclass(frozen=True)
class BatchFigures:
    """What the recommended setting reached with larger requests."""

    batch_size: int
    items_per_sec: float
    p50_ms: float
    """Of whole requests, ms."""


@dataclass(frozen=True)
class Advice:
    """What `advise` recommends, and why."""

    setting: Setting
    batch_size: int | None
    """As asked for."""
    input_shapes: Shapes | None
    """As asked for."""
    reason: str
    cost_of_ignoring: str
    """What the default, single_stream on all cores, would give instead."""
    figures: tuple[Figures, ...]
    """What was measured under the load, the best first."""
    batches: tuple[BatchFigures, ...]
    """By batch size, where a load that keeps all cores busy was asked for; else empty."""
    scaling_ms: dict[int, float]
    """By cores, the median latency of a lone request, ms."""
    load: str
    seconds: float
    """How long it took to find out."""
    others_share: float | None = None
    """What other processes took of the CPUs meanwhile, between 0 and 1; None: unknown. From a tenth
    on the answer is unsure, and is not remembered."""
    was_remembered: bool = False

    @property
    def best_batch_size(self) -> int | None:
        """The smallest within 3 % of the most items a second; None if none were compared.

        >>> batches = BatchFigures(1, 100.0, 10.0), BatchFigures(4, 125.0, 32.0)
        >>> elastic = Setting("elastic", None, None)
        >>> advice = Advice(elastic, 1, None, "", "", (), batches, {}, "", 0)
        >>> advice.best_batch_size
        4
        """
        if not self.batches:
            return None
        most = max(it.items_per_sec for it in self.batches)
        return min(it.batch_size for it in self.batches if it.items_per_sec >= 0.97 * most)

    def compile_line(self, model: str, batch_size: int | None = None) -> str:
        """Python that follows the advice, for another batch size if one is given.

        >>> elastic = Setting("elastic", None, None)
        >>> advice = Advice(elastic, 1, None, "", "", (), (), {}, "", 0)
        >>> advice.compile_line("m.onnx", 4)
        'compile_model("m.onnx", batch_size=4, scheduler="elastic")'
        """
        shapes = "" if self.input_shapes is None else f", input_shapes={self.input_shapes!r}"
        batch_size = self.batch_size if batch_size is None else batch_size
        is_plain = model.isprintable() and not set(model) & set('"\\')
        path = f'"{model}"' if is_plain else repr(model)
        return f"compile_model({path}, batch_size={batch_size}, {self.setting}{shapes})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "best_batch_size": self.best_batch_size}
