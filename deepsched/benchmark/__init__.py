"""Measuring engines under load: what `deepsched benchmark` does, as functions."""

from deepsched.benchmark.measurement import LoadOptions, Measurable, Measurement, measure
from deepsched.benchmark.models import bundled_model

__all__ = ["LoadOptions", "Measurable", "Measurement", "bundled_model", "measure"]
