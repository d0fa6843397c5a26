"""What one model was measured to do, as the cache keeps it."""

from __future__ import annotations

import contextlib
from typing import Any

from deepsched.machine.contention import is_contended
from deepsched.models.batch import BatchSize
from deepsched.models.cache import Cache
from deepsched.models.keys import hash_json


class Measurements:
    """JSON values by kind and question. Each has a record of its own, so the answers for several
    layouts of the machine, and of several processes, do not overwrite each other."""

    def __init__(self, cache: Cache, model_key: str, model: str, batch_size: BatchSize) -> None:
        """`model_key` tells models apart; `model` and `batch_size` are for `deepsched cache`."""
        self._cache = cache
        self._model_key = model_key
        self._model = model
        self._batch_size = batch_size

    def read(self, kind: str, question: object) -> Any:
        """The answer that was kept; None if there is none, or it is damaged."""
        return self._cache.measurement(self._key(kind, question))

    def write(self, kind: str, question: object, answer: Any, others_share: float | None) -> None:
        """Keeps the answer, unless others took the CPUs while it was measured. What is not kept is
        measured again next time.

        Args:
            others_share: the share of the worst CPU's time that others used meanwhile, from 0 to 1;
                None if unknown.
        """
        if is_contended(others_share):
            return
        key = self._key(kind, question)
        with contextlib.suppress(OSError):
            self._cache.remember_measurement(
                key, kind, self._model, self._batch_size, others_share, answer
            )

    def _key(self, kind: str, question: object) -> str:
        return hash_json([self._model_key, kind, question])[:32]
