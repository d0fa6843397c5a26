"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepsched.models.rewrites.graph import Graph


@dataclass(frozen=True)
class Rule:
    """A pattern, and a form of it that ONNX Runtime runs faster.

    A rule is tried, not trusted: see choosing.
    """

    name: str
    is_exact: bool
    """Whether outputs keep every bit; else they keep float32's accuracy."""
    rewrite: Callable[[Graph], int]
    """Replaces the pattern wherever it is sure of it; returns how often."""
