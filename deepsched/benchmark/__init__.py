"""Measuring engines under load: what `deepsched benchmark` does, as functions.

`measure` puts one load on one engine, `sweep` on each combination of some options, `search_rate`
finds the highest rate that holds a limit. All return data; times of theirs end in their unit.
"""

from deepsched.benchmark.arrivals import arrival_times_ns
from deepsched.benchmark.bundled import bundled_model
from deepsched.benchmark.engines import ENGINES, EngineOptions, OpenedEngine, open_engine
from deepsched.benchmark.measurement import LoadOptions, Measurable, Measurement, measure
from deepsched.benchmark.report import FIELDS, Asked, Setting, report
from deepsched.benchmark.search import RateSearch, SearchOptions, Step, search_rate
from deepsched.benchmark.sweep import AXES, Point, Sweep, SweepOptions, combinations, sweep

__all__ = [
    "AXES",
    "ENGINES",
    "FIELDS",
    "Asked",
    "EngineOptions",
    "LoadOptions",
    "Measurable",
    "Measurement",
    "OpenedEngine",
    "Point",
    "RateSearch",
    "SearchOptions",
    "Setting",
    "Step",
    "Sweep",
    "SweepOptions",
    "arrival_times_ns",
    "bundled_model",
    "combinations",
    "measure",
    "open_engine",
    "report",
    "search_rate",
    "sweep",
]
