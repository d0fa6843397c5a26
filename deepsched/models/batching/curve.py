"""How long runs are by the number of their items, and up to how many that pays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from deepsched.models.rewrites.timing import SHORTEST_SAMPLE_S, Sample, sample

_BUDGET_S, _PATIENCE_S = 0.3, 1.5
"""For all sizes together, of CPU time and by the clock; what has begun is ended."""

_NUM_ROUNDS = 4

_FEWEST_QUIET = 2
"""Samples of a size that had the CPU, below which its figure does not count."""

_SAMPLING_S, _LONGEST_SAMPLING_S, _MOST_SAMPLES = 0.02, 0.2, 25
"""For one size alone: the longer time if too few of the samples had the CPU."""

LEAST_GAIN = 0.2
"""Share of an item's CPU time that batches have to save."""

HOPELESS_GAIN = 0.1
"""Where first samples show less, there are no more; and where less was seen beside others, another
start would see no more than LEAST_GAIN."""

_GAIN_OF_DOUBLING = 0.05
"""A batch twice as large has to save so much more."""

_LARGEST = 64
"""Beyond that nothing was seen to gain; and latency grows."""


def sizes_to_time(rows: int, most: int) -> list[int]:
    """Numbers of items: a single one, a request's, and doublings of that.

    >>> sizes_to_time(1, 256), sizes_to_time(3, 256), sizes_to_time(100, 256)
    ([1, 2, 4, 8, 16, 32, 64], [1, 3, 6, 12, 24, 48], [1, 100, 200])
    """
    largest = min(most, max(_LARGEST, 2 * rows))
    doublings = [rows << power for power in range(_LARGEST.bit_length())]
    return sorted({1, *(size for size in doublings if size <= largest)})


class TimedSizes(NamedTuple):
    """How long runs are, by their number of items."""

    seconds: dict[int, float]
    """The shortest, in CPU seconds: all that disturbs a run only adds to it."""
    is_quiet: bool
    """Whether others left it the CPU; else the figures are a guess."""


def time_sizes(
    run: Callable[[list[Any]], Any],
    inputs_of: Callable[[int], list[Any]],
    rows: int,
    most: int,
    is_thorough: bool,
) -> TimedSizes:
    """Sizes take turns, so that a change of the CPU's clock falls on all of them.

    Args:
        inputs_of: inputs with so many items.
        rows: items in a request. The largest sizes are left out where runs are long, and those
            where others had the CPU.
        most: items to try.
        is_thorough: also if first samples show that nothing is gained.
    """
    end, end_of_cpu = perf_counter() + _PATIENCE_S, thread_time() + _BUDGET_S
    samplers: dict[int, Callable[[], Sample]] = {}
    taken: dict[int, list[Sample]] = {}
    for size in sizes_to_time(rows, most):
        samplers[size] = _sampler(run, inputs_of(size))
        taken[size] = [samplers[size]()]
        if size > rows and thread_time() > end_of_cpu - _BUDGET_S / 2:
            break
    rough = _quiet(taken, 1)
    is_known = len(rough) == len(taken) and not is_thorough
    if is_known and max(gain_at(size, rough, rows) for size in rough) < HOPELESS_GAIN:
        return TimedSizes(rough, True)
    for number in itertools.count(1):
        for size, sampler in samplers.items():
            taken[size].append(sampler())
        is_late = thread_time() > end_of_cpu or perf_counter() > end
        is_enough = number >= _NUM_ROUNDS and len(_quiet(taken, _FEWEST_QUIET)) == len(taken)
        if is_enough or (is_late and number >= _FEWEST_QUIET):
            break
    every, quiet = _shortest(taken), _quiet(taken, _FEWEST_QUIET)
    if rows in quiet and max(quiet) > rows:
        return TimedSizes({1: every[1], **quiet}, True)
    return TimedSizes(every, False)


def shortest_run(run: Callable[[list[Any]], Any], inputs: list[Any]) -> tuple[float, bool]:
    """CPU seconds of one of several runs, and whether others left them the CPU."""
    sampler, begin = _sampler(run, inputs), perf_counter()
    taken = [sampler()]
    while len(taken) < _MOST_SAMPLES and (
        (waited := perf_counter() - begin) < _SAMPLING_S
        or (waited < _LONGEST_SAMPLING_S and not _quiet({1: taken}, _FEWEST_QUIET))
    ):
        taken.append(sampler())
    quiet = _quiet({1: taken}, _FEWEST_QUIET)
    return (quiet or _shortest({1: taken}))[1], bool(quiet)


def _sampler(run: Callable[[list[Any]], Any], inputs: list[Any]) -> Callable[[], Sample]:
    """Samples after a run that allocates, and warms the cache where that is soon cold."""
    run(inputs)
    length_s, num_runs = sample(lambda: run(inputs), 1).wall, 1
    while length_s * num_runs < SHORTEST_SAMPLE_S:
        num_runs *= 2

    def take() -> Sample:
        if num_runs > 1:
            run(inputs)
        return sample(lambda: run(inputs), num_runs)

    return take


def _quiet(taken: Mapping[int, Sequence[Sample]], fewest: int) -> dict[int, float]:
    """The shortest of each size that had the CPU in so many samples."""
    quiet = {size: [it for it in of if it.is_quiet] for size, of in taken.items()}
    return _shortest({size: of for size, of in quiet.items() if len(of) >= fewest})


def _shortest(taken: Mapping[int, Sequence[Sample]]) -> dict[int, float]:
    return {size: min(it.cpu for it in of) for size, of in taken.items()}


def gain_at(size: int, seconds: Mapping[int, float], rows: int = 1) -> float:
    """The share of an item's time that runs of `size` items save against those of a request's.

    >>> gain_at(4, {1: 8.0, 2: 8.0, 4: 12.0})
    0.625
    """
    return 1 - seconds[size] / size * rows / seconds[rows]


def knee_of(seconds: Mapping[int, float], rows: int = 1) -> int:
    """The size from which on doubling it gains less than 5 % an item, twice as large ones too.

    >>> knee_of({1: 8.0, 2: 8.0, 4: 12.0, 8: 23.5, 16: 46.5})
    4
    >>> knee_of({1: 8.0, 2: 16.0, 4: 24.0})
    4
    """
    sizes = [size for size in sorted(seconds) if size >= rows]
    knee = 0
    while True:
        here = seconds[sizes[knee]] / sizes[knee]
        steps = [
            number
            for number in (1, 2)
            if knee + number < len(sizes)
            and seconds[sizes[knee + number]] / sizes[knee + number]
            <= here * (1 - _GAIN_OF_DOUBLING) ** number
        ]
        if not steps:
            return sizes[knee]
        knee += steps[0]
