"""Measuring engines under load: what `deepsched benchmark` does, as functions."""

from deepsched.benchmark.load import Measurement, measure
from deepsched.benchmark.models import bundled_model

__all__ = ["Measurement", "bundled_model", "measure"]
