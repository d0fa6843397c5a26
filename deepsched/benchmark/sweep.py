"""sweep: measures every combination of some options, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Unpack

from deepsched.benchmark.engines import EngineOptions, EngineSetting, OpenedEngine, open_engine
from deepsched.benchmark.measurement import LoadOptions, Measurement, measure
from deepsched.errors import DeepschedError, OptionError

AXES = ("num_streams", "batch_size", "num_cores", "callers", "rate")

Values = dict[str, Any]


class SweepOptions(EngineOptions, LoadOptions, total=False):
    """Options that all combinations share; see `open_engine` and `measure`."""


@dataclass(frozen=True)
class Point:
    """One combination: its measurement, or the error in place of it."""

    values: Values
    setting: EngineSetting | None
    measurement: Measurement | None
    error: DeepschedError | None = None


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep."""

    axes: Mapping[str, Sequence[Any]]
    points: tuple[Point, ...]
    is_interrupted: bool = False
    """Whether Ctrl-C ended it early; the last point may have been measured for a shorter time."""


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Each combination once; the last axis varies fastest.

    Raises:
        OptionError: an axis is unknown, or has no values.

    Example:
        >>> combinations({"num_streams": [1, 2], "batch_size": [1, 8]})[1]
        {'num_streams': 1, 'batch_size': 8}
    """
    for axis, values in axes.items():
        if axis not in AXES:
            raise OptionError(f"a sweep axis must be one of {', '.join(AXES)}, got {axis!r}")
        if not values:
            raise OptionError(f"the sweep axis {axis} needs values, for example {axis}=1,2")
    distinct = [dict.fromkeys(values) for values in axes.values()]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*distinct)]


def sweep(
    model_path: str,
    axes: Mapping[str, Sequence[Any]],
    *,
    engine: str = "deepsched",
    on_point: Callable[[Values], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    open_with: Callable[..., OpenedEngine] = open_engine,
    **options: Unpack[SweepOptions],
) -> Sweep:
    """Measures every combination, each with an engine of its own.

    Combinations that are not possible (more streams than cores) have an error in place of a
    measurement. Peak memory is the process's, and may include pages that the allocator kept from
    earlier combinations.

    Args:
        model_path: an ONNX file.
        axes: the values of any of `num_streams`, `batch_size`, `num_cores`, `callers` and `rate`
            (requests per second; open loop).
        engine: see `open_engine`.
        on_point: called with the values of each combination before it is measured.
        on_progress: see `measure`; of the current combination.
        open_with: opens an engine in place of `open_engine`; takes the same arguments.
        options: of `open_engine` and of `measure`, shared by all combinations.

    Returns:
        A point for each combination. After Ctrl-C, those until then.

    Raises:
        OptionError: an axis is unknown, or has no values.
        KeyboardInterrupt: Ctrl-C before anything was measured.

    Example:
        >>> from deepsched.benchmark import bundled_model
        >>> result = sweep(
        ...     bundled_model("squeezenet"), {"callers": [1, 2]}, seconds=0.05, warmup_seconds=0
        ... )
        >>> [point.measurement.callers for point in result.points]
        [1, 2]
    """
    points: list[Point] = []
    try:
        for values in combinations(axes):
            if on_point is not None:
                on_point(values)
            chosen = {**options, **values}
            for_engine = {k: v for k, v in chosen.items() if k in EngineOptions.__annotations__}
            for_load = {k: v for k, v in chosen.items() if k in LoadOptions.__annotations__}
            try:
                with closing(open_with(engine, model_path, **for_engine)) as opened:
                    setting = EngineSetting.of(opened)
                    measurement = measure(opened, on_progress=on_progress, **for_load)
            except DeepschedError as error:
                points.append(Point(values, None, None, error))
                continue
            points.append(Point(values, setting, measurement))
            if measurement.is_interrupted:
                return Sweep(axes, tuple(points), is_interrupted=True)
    except KeyboardInterrupt:
        if not any(point.measurement for point in points):
            raise
        return Sweep(axes, tuple(points), is_interrupted=True)
    return Sweep(axes, tuple(points))
