"""Measures engines under load: the functions behind `deepsched benchmark`.

`measure` puts one load on one engine, `sweep` measures each combination of some options, and
`search_rate` finds the highest arrival rate with p99 within a limit. All return data; names of
times end in their unit.
"""

from deepsched.benchmark.arrivals import arrival_times_ns
from deepsched.benchmark.bundled import bundled_model
from deepsched.benchmark.engines import (
    ENGINES,
    EngineOptions,
    EngineSetting,
    OpenedEngine,
    open_engine,
)
from deepsched.benchmark.measurement import LoadOptions, Measurable, Measurement, measure
from deepsched.benchmark.report import FIELDS, Asked, report
from deepsched.benchmark.search import RateSearch, SearchOptions, Step, search_rate
from deepsched.benchmark.sweep import AXES, Point, Sweep, SweepOptions, combinations, sweep

# The public name. Inside it is EngineSetting, since `deepsched.advice.Setting` is something else.
Setting = EngineSetting

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
