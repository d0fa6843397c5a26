"""How long runs take, by samples that had their CPUs for themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deepsched.machine.contention import ContentionMonitor, is_contended

# Shorter samples would measure the clock.
SHORTEST_SAMPLE_S = 200e-6

# A sample counts if its thread was on a CPU for this share of it: else others had the CPU.
_QUIET_SHARE = 0.9

FEWEST_QUIET = 3
"""Samples that count, for a figure to count."""

_MOST_SAMPLES = 25

# Speeds of the machine that differ by more are two states of it.
_ONE_STATE = 1.04


class Timing(NamedTuple):
    """The length of a form's runs on one stream."""

    seconds: float | None
    """None if others had the CPUs."""
    yardsticks: tuple[float, float]
    """Seconds that a fixed piece of work took, before and after."""


class Sample(NamedTuple):
    """Seconds for one run: of the calling thread's CPU time, and of the clock."""

    cpu: float
    wall: float

    @property
    def is_quiet(self) -> bool:
        return self.cpu >= _QUIET_SHARE * self.wall


class TimedRuns:
    """Runs a model in the calling thread, and notes what each run takes."""

    def __init__(self, run: Callable[[list[Any]], Any], cpus: tuple[int, ...]) -> None:
        """`cpus`: those that it runs on."""
        self._run = run
        self._cpus = cpus
        self._samples: list[Sample] = []
        self._monitor = ContentionMonitor(cpus) if len(cpus) > 1 else None
        self._first_yardstick = yardstick()

    def run(self, inputs: list[Any]) -> Any:
        """The model's outputs."""
        outputs: list[Any] = []
        self._samples.append(sample(lambda: outputs.append(self._run(inputs)), 1))
        return outputs[0]

    def forget(self) -> None:
        """What runs took so far does not count."""
        self._samples.clear()

    def timing(self, inputs: list[Any], sampling_s: float, fewest: int = FEWEST_QUIET) -> Timing:
        """The median length of a run.

        On one CPU it is CPU time, which does not count interruptions. On more it is the clock's:
        threads that spin while they wait have CPU time too.

        Args:
            inputs: what to run with, if it has run too rarely.
            sampling_s: for about so long.
            fewest: samples that count, for a figure to count.
        """
        if not self._samples:
            self.run(inputs)
        num_runs = 1
        while self._samples[-1].wall * num_runs < SHORTEST_SAMPLE_S:
            num_runs *= 2
        # The first run allocates. Short ones are sampled anew, several at a time.
        samples = self._samples[1:] if num_runs == 1 else []
        end = time.perf_counter() + sampling_s
        while len(samples) < fewest or (len(samples) < _MOST_SAMPLES and time.perf_counter() < end):
            samples.append(sample(lambda: self._run(inputs), num_runs))
        return Timing(self._median(samples, fewest), (self._first_yardstick, yardstick()))

    def _median(self, samples: list[Sample], fewest: int) -> float | None:
        if self._monitor is not None and is_contended(self._monitor.others_share()):
            return None
        quiet = [it.cpu if self._monitor is None else it.wall for it in samples if it.is_quiet]
        return statistics.median(quiet) if len(quiet) >= fewest else None


def gain(before: Timing, candidate: Timing) -> float | None:
    """The share of the run time that the candidate saves; None if others had the CPUs, or the
    machine was not in one state all the time.

    >>> gain(Timing(4.0, (1.0, 1.0)), Timing(3.0, (1.0, 1.02)))
    0.25
    >>> gain(Timing(4.0, (1.0, 1.0)), Timing(3.0, (0.8, 0.8)))
    """
    marks = (*before.yardsticks, *candidate.yardsticks)
    if before.seconds is None or candidate.seconds is None or max(marks) > _ONE_STATE * min(marks):
        return None
    return 1 - candidate.seconds / before.seconds


def yardstick() -> float:
    """CPU seconds that a fixed piece of work takes now, about 1 ms: it tells how fast the CPU is,
    which depends on its clock, on its hyper-thread's other half, and on a hypervisor's other
    guests."""
    values = np.ones(16 * 1024, np.float32)
    shortest = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        for _ in range(20):
            np.sqrt(values, out=values)
        shortest = min(shortest, time.thread_time() - begin)
    return shortest


def sample(call: Callable[[], object], num_calls: int) -> Sample:
    """What one of so many calls takes."""
    cpu, wall = time.thread_time(), time.perf_counter()
    for _ in range(num_calls):
        call()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return Sample(cpu / num_calls, wall / num_calls)
