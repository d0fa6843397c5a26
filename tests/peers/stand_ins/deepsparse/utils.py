"""What DeepSparse's tests take from deepsparse.utils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def override_onnx_batch_size(*args: Any, **options: Any) -> None:
    """Imported wherever their tests are; only those of pipelines call it."""
    raise NotImplementedError("pipelines")


def verify_outputs(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Asserts that shapes are the same, and values to the accuracy of float32."""
    assert len(outputs) == len(expected)
    for one, other in zip(outputs, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
