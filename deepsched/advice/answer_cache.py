"""Answers of `advise`, kept in the cache until the same question is asked again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deepsched.advice.settings import (
    Advice,
    BatchFigures,
    Figures,
    Replicas,
    Setting,
    StateAnswer,
)
from deepsched.machine.shape import cpu_models, describe_shape
from deepsched.machine.topology import Topology
from deepsched.models.batch import BatchSize
from deepsched.models.keys import Content
from deepsched.models.locations import CacheDir, open_cache
from deepsched.models.measurements import Measurements
from deepsched.models.prepare import ModelLike
from deepsched.runtime.library import describe_library
from deepsched.version import __version__

_KIND = "advice"


class AnswerCache:
    """The answer to one question about one model, on machines of this shape, with these
    versions."""

    def __init__(self, measurements: Measurements, question: list[Any]) -> None:
        self._measurements = measurements
        self._question = question

    @classmethod
    def open(
        cls,
        model: ModelLike,
        batch_size: BatchSize,
        custom_ops: Sequence[str],
        cache_dir: CacheDir,
        question: list[Any],
    ) -> AnswerCache | None:
        """None if there is no cache, or an argument is wrong, which the engine will say."""
        try:
            cache = open_cache(cache_dir)
            if cache is None:
                return None
            content = Content.of(model, cache)
            topology = Topology.detect()
            machine = [describe_shape(topology.cores), topology.cpu_quota, cpu_models()]
            circumstances = [machine, __version__, describe_library()["version"]]
            circumstances += [cache.hash_file(path)[0] for path in custom_ops]
        except (OSError, AttributeError, TypeError, ValueError):
            return None
        measurements = Measurements(cache, content.checksum, content.name, batch_size)
        return cls(measurements, [question, *circumstances])

    def get(self, seconds: float, compares_batches: bool) -> Advice | None:
        """The answer; None if there is none, it was found in less time than is given now, or it
        lacks the batches that are asked for."""
        try:
            kept = self._measurements.read(_KIND, self._question)
            advice = kept["advice"]
            if kept["seconds"] < seconds or (compares_batches and not advice["batches"]):
                return None
            del advice["best_batch_size"]
            advice |= {
                "setting": Setting(**advice["setting"]),
                "figures": tuple(_figures(it) for it in advice["figures"]),
                "batches": tuple(
                    BatchFigures(**it) for it in advice["batches"] if compares_batches
                ),
                "custom_ops": tuple(advice["custom_ops"]),
                "scaling_ms": {int(cores): ms for cores, ms in advice["scaling_ms"].items()},
                "states": tuple(
                    StateAnswer(**{**it, "setting": Setting(**it["setting"])})
                    for it in advice["states"]
                ),
                "replicas": tuple(Replicas(**it) for it in advice["replicas"]),
                "was_remembered": True,
            }
            return Advice(**advice)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # none was kept, or by a version with other fields

    def put(self, advice: Advice, seconds: float) -> None:
        """Keeps an answer, unless other processes disturbed it. `seconds`: the time that was given
        to find it."""
        answer = {"seconds": seconds, "advice": advice.to_dict()}
        self._measurements.write(_KIND, self._question, answer, advice.others_share)


def _figures(kept: dict[str, Any]) -> Figures:
    """Those that `Advice.to_dict` made ready for JSON."""
    infinite = {name: math.inf for name, value in kept.items() if value is None}
    return Figures(**{**kept, **infinite, "setting": Setting(**kept["setting"])})
