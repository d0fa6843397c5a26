"""Requests one after the other, each timed: DeepSparse's Engine.benchmark and its results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from deepsched.errors import OptionError
from deepsched.integers import check_integer
from deepsched.invocation.progress import tracked


@dataclass(frozen=True)
class BatchBenchmarkResult:
    """One request."""

    time_start: float
    """Seconds, of time.perf_counter."""
    time_end: float
    batch_size: int
    """Items in it."""
    inputs: Any = None
    """What it was given, if that was to be kept."""
    outputs: Any = None
    """What it returned, if that was to be kept."""

    @property
    def time_elapsed(self) -> float:
        """Seconds from the call to the answer."""
        return self.time_end - self.time_start

    @property
    def batches_per_second(self) -> float:
        """Requests a second, one after the other."""
        return 1 / self.time_elapsed

    @property
    def items_per_second(self) -> float:
        """Items a second."""
        return self.batch_size / self.time_elapsed

    @property
    def ms_per_batch(self) -> float:
        """Milliseconds from the call to the answer."""
        return 1e3 * self.time_elapsed

    @property
    def ms_per_item(self) -> float:
        """Milliseconds for each item in it."""
        return self.ms_per_batch / self.batch_size


class BenchmarkResults(Sequence[BatchBenchmarkResult]):
    """Requests that ran one after the other; a sequence of BatchBenchmarkResult.

    Example:
        >>> results = BenchmarkResults([BatchBenchmarkResult(0.0, 0.5, 4)])
        >>> results.items_per_second, results.ms_per_item
        (8.0, 125.0)
    """

    def __init__(self, results: Iterable[BatchBenchmarkResult]) -> None:
        self.results = list(results)
        """All of them, in their order."""

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    @property
    def num_batches(self) -> int:
        """How many requests."""
        return len(self)

    @property
    def num_items(self) -> int:
        """How many items in all of them."""
        return sum(self.batch_sizes)

    @property
    def batch_times(self) -> list[float]:
        """Of each request, seconds."""
        return [result.time_elapsed for result in self]

    @property
    def batch_sizes(self) -> list[int]:
        """Of each request, items."""
        return [result.batch_size for result in self]

    @property
    def batch_times_mean(self) -> float:
        """Seconds."""
        return statistics.fmean(self.batch_times)

    @property
    def batch_times_median(self) -> float:
        """Seconds."""
        return statistics.median(self.batch_times)

    @property
    def batch_times_std(self) -> float:
        """Seconds; of these requests, not an estimate for more."""
        return statistics.pstdev(self.batch_times)

    @property
    def batches_per_second(self) -> float:
        """Requests a second."""
        return self.num_batches / sum(self.batch_times)

    @property
    def items_per_second(self) -> float:
        """Items a second."""
        return self.num_items / sum(self.batch_times)

    @property
    def ms_per_batch(self) -> float:
        """Milliseconds for a request, in the mean."""
        return 1e3 * sum(self.batch_times) / self.num_batches

    @property
    def ms_per_item(self) -> float:
        """Milliseconds for an item, in the mean."""
        return 1e3 * sum(self.batch_times) / self.num_items

    @property
    def inputs(self) -> list[Any]:
        """Of each request; Nones unless they were to be kept."""
        return [result.inputs for result in self]

    @property
    def outputs(self) -> list[Any]:
        """Of each request; Nones unless they were to be kept."""
        return [result.outputs for result in self]

    def __repr__(self) -> str:
        return (
            f"<BenchmarkResults of {self.num_batches} batches: {self.items_per_second:.1f} "
            f"items/s, {self.ms_per_batch:.3f} ms a batch, median "
            f"{1e3 * self.batch_times_median:.3f}, std {1e3 * self.batch_times_std:.3f}>"
        )


def timed_requests(
    run: Callable[[Any], Any],
    loader: Iterable[Any],
    batch_size: int | None,
    num_iterations: int,
    num_warmup_iterations: int,
    include_inputs: bool,
    include_outputs: bool,
    show_progress: bool,
) -> BenchmarkResults:
    """See Engine.benchmark_loader. `batch_size`: items in each; None for as many as it has."""
    num_iterations, num_warmup_iterations = check_iterations(num_iterations, num_warmup_iterations)
    inputs = _again_and_again(loader)
    for each in islice(inputs, num_warmup_iterations):
        run(each)
    measured: Iterable[Any] = islice(inputs, num_iterations)
    if show_progress:
        measured = tracked(measured, "iterations", num_iterations)
    results = []
    for each in measured:
        begin = time.perf_counter()
        outputs = run(each)
        end = time.perf_counter()
        results.append(
            BatchBenchmarkResult(
                begin,
                end,
                batch_size or _num_items(each),
                each if include_inputs else None,
                outputs if include_outputs else None,
            )
        )
    return BenchmarkResults(results)


def check_iterations(num_iterations: int, num_warmup_iterations: int) -> tuple[int, int]:
    """Returns both as plain ints.

    Raises:
        OptionError: no integers, or too small.
    """
    return (
        check_integer("num_iterations", num_iterations, 1),
        check_integer("num_warmup_iterations", num_warmup_iterations, 0),
    )


def _num_items(inputs: Any) -> int:
    """The first dimension of the first input; 1 if it has none."""
    first = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs), None)
    shape = getattr(first, "shape", ())
    return int(shape[0]) if shape else 1


def _again_and_again(loader: Iterable[Any]) -> Iterator[Any]:
    """From the start when it is used up.

    Raises:
        OptionError: it has nothing to give, or nothing any more.
    """
    while True:
        is_empty = True
        for inputs in loader:
            is_empty = False
            yield inputs
        if is_empty:
            raise OptionError(
                "the loader ran out of inputs before all iterations were done; give a list, which "
                "can be gone through again, or fewer num_iterations"
            )
